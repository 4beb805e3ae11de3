#!/usr/bin/env node
/**
 * What a whole step on a GPU cannot be faster than, computed from the kernels' machine code without a GPU: of every launch the bytes of its
 * operands and the instructions that its warps issue, beside what an H200 has (README.md). Needs `npm run setup -- --cuda --test`.
 *
 *   node native/lab/cuda_step.mjs [--model efficientnet_b0] [--batch 256] [--size 224] [--infer] [--json FILE] [kernels]
 *
 * kernels: a regular expression; only ops with such a kernel are shown.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { launchStep, noteLaunches } from '../../scripts/lib/kernel_launches.mjs'
import { root } from '../../scripts/lib/run.mjs'
import { Counts, Elsewhere, Machine } from './sass/machine.mjs'
import { readKernels } from './sass/read.mjs'

const { values, positionals } = parseArgs({
  options: {
    model: { type: 'string', default: 'efficientnet_b0' },
    batch: { type: 'string', default: '256' },
    size: { type: 'string', default: '224' },
    infer: { type: 'boolean', default: false },
    json: { type: 'string' },
  },
  allowPositionals: true,
})

// An H200: multiprocessors, clock in GHz that it keeps under load, TB/s that a copy was measured at.
const PROCESSORS = 132
const GIGAHERTZ = 1.6
const TERABYTES = 4.2

/** The launches of a step, in order, each with the op it belongs to. */
async function launches(folder) {
  const log = path.join(folder, 'launches')
  // With the ranges for profilers, which say where a launch belongs.
  noteLaunches(log, { FAKE_NVTX_LOG: log, NVTX_INJECTION64_PATH: path.join(root, 'build/fake_cuda/libnvtx.so.3') })
  const { createModel } = await import('../../dist/index.js')
  const model = await createModel(values.model, { device: 'cuda', precision: 'bf16-mixed', seed: 0 })
  const shape = { batchSize: Number(values.batch), imageSize: Number(values.size) }
  const dump = await launchStep(model.session, { training: !values.infer, ...shape })
  await model.close()
  const bytes = new Map(dump.map((row) => [row.name, row.bytes]))
  const found = []
  const ranges = []
  for (const line of readFileSync(log, 'utf8').trim().split('\n')) {
    const [word, ...rest] = line.split(' ')
    if (word === 'push') ranges.push(rest.join(' '))
    else if (word === 'pop') ranges.pop()
    else if (ranges[0] === 'step') found.push({ op: ranges[1] ?? rest[0], ...launchOf(rest), opBytes: bytes.get(ranges[1]) })
  }
  return found
}
function launchOf([kernel, x, y, z, threads, , hex]) {
  return { kernel, grid: [x, y, z].map(Number), threads: Number(threads), args: Uint8Array.from(Buffer.from(hex, 'hex')) }
}

/** Equal for launches that do the same elsewhere in memory. */
function keyOf({ kernel, grid, threads, args }) {
  const words = new BigUint64Array(args.slice(0, args.length & ~7).buffer)
  const plain = [...words].map((word) => (word >= 1n << 32n && word < 1n << 48n ? 'address' : word))
  return [kernel, grid, threads, ...plain].join(' ')
}

/** Microseconds of a launch by each unit, were all others for nothing. */
function times({ counts, blocks, read, written }) {
  // Some multiprocessor has as many blocks as this.
  const uneven = (Math.ceil(blocks / PROCESSORS) * PROCESSORS) / blocks
  const cycles = (n) => (n * uneven) / PROCESSORS / GIGAHERTZ / 1000
  const { units } = counts
  return {
    memory: (read + written) / TERABYTES / 1e6,
    issue: cycles(counts.issued / 4),
    fp32: cycles(Math.max((units.fp32 + units.imad) / 4, units.imad / 2)),
    alu: cycles(units.alu / 2),
    xu: cycles(units.xu * 2),
    fp64: cycles(units.fp64 / 2),
    tensor: cycles(units.tensor * 2),
    l1: cycles(counts.shared + counts.global),
  }
}
const BOUNDS = ['memory', 'issue', 'fp32', 'alu', 'xu', 'fp64', 'tensor', 'l1']
const most = (of) => BOUNDS.reduce((best, name) => (of[name] > of[best] ? name : best))

/**
 * Of a kernel that goes where memory tells it, or does nothing because of what it found there, the op's operands are all that is known:
 * those kernels go over parameters.
 */
function counted(machine, launch) {
  const unknown = { counts: new Counts(), blocks: 1, read: launch.opBytes ?? 0, written: 0, asked: launch.opBytes ?? 0 }
  if (/^(update|grad_norm)/.test(launch.kernel)) return unknown
  try {
    return machine.launch(launch)
  } catch (error) {
    if (!(error instanceof Elsewhere)) throw new Error(`${launch.op}: ${launch.kernel}`, { cause: error })
    return unknown
  }
}

const folder = mkdtempSync(path.join(os.tmpdir(), 'cuda-step-'))
try {
  const all = await launches(folder)
  const images = path.join(root, 'build/kernels')
  const wanted = new Set(all.map(({ kernel }) => kernel))
  const kernels = new Map()
  for (const file of readdirSync(images).filter((name) => name.endsWith('.fatbin'))) {
    const names = readFileSync(path.join(images, file.replace('.fatbin', '.resources.txt')), 'utf8')
    const there = [...names.matchAll(/entry function '(\w+)'/g)].map(([, name]) => name).filter((name) => wanted.has(name))
    if (there.length === 0) continue
    for (const [name, code] of readKernels(path.join(images, file), there)) kernels.set(name, code)
  }
  const machine = new Machine(kernels)
  const known = new Map()
  const rows = all.map((launch) => {
    const key = keyOf(launch)
    if (!known.has(key)) {
      known.set(key, counted(machine, launch))
    }
    const found = known.get(key)
    return { ...launch, ...found, times: times(found) }
  })
  report(rows)
} finally {
  rmSync(folder, { recursive: true })
}

function report(rows) {
  const us = (n) => n.toFixed(1)
  const shown = rows.filter(({ kernel }) => !positionals[0] || new RegExp(positionals[0]).test(kernel))
  console.table(
    shown.map(({ op, kernel, times: of, read, written, asked, counts, blocks }) => ({
      op,
      kernel,
      blocks,
      MB: ((read + written) / 1e6).toFixed(1),
      'asked for': (asked / (read + written) || 0).toFixed(2),
      'M instructions': (counts.issued / 1e6).toFixed(2),
      ...Object.fromEntries(['memory', 'issue', 'fp32', 'alu', 'xu', 'tensor', 'l1'].map((name) => [name, us(of[name])])),
      bound: most(of),
    })),
  )
  const sum = (of) => rows.reduce((total, row) => total + of(row), 0)
  const bound = sum(({ times: of }) => of[most(of)])
  const memory = sum(({ times: of }) => of.memory)
  console.log(`${rows.length} launches; memory alone ${us(memory)} us, with what binds each ${us(bound)} us`)
  if (values.json) {
    const plain = rows.map(({ op, kernel, grid, threads, read, written, counts, times: of }) => ({
      op,
      kernel,
      grid,
      threads,
      read,
      written,
      issued: counts.issued,
      units: counts.units,
      shared: counts.shared,
      global: counts.global,
      times: of,
      bound: most(of),
    }))
    writeFileSync(values.json, JSON.stringify(plain, null, 1))
  }
}
