#!/usr/bin/env node
/**
 * `node scripts/kernel_budgets.mjs`: writes native/cuda/budgets.json anew from the kernels of build/ and from what whole networks launch, bound on
 * a driver without a GPU (build/fake_cuda). A look at the difference then tells what a change costs: registers a thread, in eights as a
 * GPU gives them out, and blocks that a multiprocessor of an H100 or H200 holds at once.
 */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { launchNetworks } from './lib/kernel_launches.mjs'
import { assembled, compiledThreads, launched, residentBlocks } from './lib/kernel_use.mjs'
import { fail, root, SetupError, say } from './lib/run.mjs'

const ARCHITECTURE = 'sm_90a'
const at = (...names) => path.join(root, ...names)

async function launches() {
  const work = mkdtempSync(path.join(os.tmpdir(), 'effnet-launches-'))
  try {
    const file = path.join(work, 'launches')
    await launchNetworks(file, (name) => say('launches', name))
    return launched(file)
  } finally {
    rmSync(work, { recursive: true })
  }
}

async function main() {
  const folder = at('build/kernels')
  if (!existsSync(folder) || !existsSync(at('build/fake_cuda/libcuda.so.1')))
    throw new SetupError('the kernels or the driver without a GPU are not built', 'npm run setup -- --test', 69)
  const kernels = assembled(folder)
    .filter(({ architecture }) => architecture === ARCHITECTURE)
    .toSorted((a, b) => (a.kernel < b.kernel ? -1 : 1))
  const threads = compiledThreads(folder, ARCHITECTURE)
  const seen = await launches()
  const registers = kernels.map(({ kernel, registers: used }) => `    "${kernel}": ${8 * Math.ceil(used / 8)}`)
  const blocks = kernels.map(({ kernel, registers: used }) => {
    const launch = seen.get(kernel)
    const row = { threads: threads.get(kernel), shared: launch ? launch.shared : null }
    const held = launch ? residentBlocks(ARCHITECTURE, { ...row, registers: 8 * Math.ceil(used / 8) }) : null
    return `    "${kernel}": { "threads": ${row.threads}, "shared": ${row.shared}, "blocks": ${held} }`
  })
  const section = (name, rows) => `  "${name}": {\n${rows.join(',\n')}\n  }`
  writeFileSync(
    at('native/cuda/budgets.json'),
    `{\n${[section(ARCHITECTURE, registers), section('blocks', blocks)].join(',\n')}\n}\n`,
  )
  say('budgets', `${kernels.length} kernels, ${kernels.filter(({ kernel }) => seen.has(kernel)).length} launched`)
}

main().catch(fail)
