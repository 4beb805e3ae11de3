#!/usr/bin/env node
/**
 * `npm run cuda-checks -- [cudnn] [architectures] [layers]`: what CI has no time for of the CUDA backend's checks without a GPU; all by
 * default.
 *
 *   cudnn          asks the real cuDNN for every row of native/cuda/providers/cudnn_support.inc (CI: 20 of them); minutes
 *   architectures  compiles the kernels for all GPUs of a release, PTX included, into build-architectures, and holds them to their
 *                  budgets: as many registers as on sm_90a and some, next to no spills, blocks that can be launched; and to the
 *                  instructions that they were written for. 40 minutes on two cores.
 *   layers         every layer shape of the models on small images, even and odd, in every type, emulated under four orders: the same
 *                  bits, and what float64 gives. Half an hour and more.
 */
import { existsSync } from 'node:fs'
import path from 'node:path'
import { defaultJobs } from './lib/build.mjs'
import { RELEASE_ARCHITECTURES } from './lib/release.mjs'
import { elapsed, fail, probe, root, run, runThrough, SetupError, say } from './lib/run.mjs'

const at = (...names) => path.join(root, ...names)

async function cudnn() {
  const program = at('build/cuda_cudnn_support_test')
  if (!existsSync(program)) throw new SetupError('cuDNN is not there', 'npm run setup -- --test --cuda-libraries', 69)
  const args = ['--gtest_filter=*EnginesAreThoseOfTheFile']
  const { status, stdout, stderr } = probe(program, args, {
    env: { ...process.env, EFFNET_CUDNN_ROWS: 'all' },
    maxBuffer: 1 << 28,
  })
  process.stdout.write(stdout + stderr)
  if (/\[ {2}SKIPPED \]/.test(stdout)) throw new SetupError('nothing was asked', 'npm run setup -- --cuda-libraries', 69)
  return status === 0
}

async function architectures() {
  const folder = at('build-architectures')
  const options = ['-DEFFNET_ADDON=OFF', `-DEFFNET_CUDA_ARCHITECTURES=${RELEASE_ARCHITECTURES}`]
  await run('configure', 'cmake', ['-S', root, '-B', folder, '-G', 'Ninja', ...options], { mend: 'npm run setup -- --cuda' })
  await run('compile', 'cmake', ['--build', folder, '-j', String(defaultJobs()), '--target', 'cuda_images'], {
    mend: 'the compiler output above names the file',
  })
  const env = { ...process.env, EFFNET_KERNELS: path.join(folder, 'kernels') }
  return (await runThrough('npx', ['vitest', 'run', 'test/engine/cuda_budgets.test.ts'], { env })) === 0
}

async function layers() {
  const env = { ...process.env, EFFNET_CUDA_SHAPES: 'all' }
  const files = ['test/engine/gpu_shapes.test.ts', 'test/engine/cuda_layers.test.ts']
  return (await runThrough('npx', ['vitest', 'run', ...files], { env })) === 0
}

const checks = { cudnn, architectures, layers }

async function main() {
  const given = process.argv.slice(2)
  const unknown = given.find((name) => !(name in checks))
  if (unknown) throw new SetupError(`${unknown}: there are ${Object.keys(checks).join(', ')}`, undefined, 64)
  for (const name of given.length > 0 ? given : Object.keys(checks)) {
    const ok = await checks[name]()
    say('checks', `${name}: ${ok ? 'passed' : 'FAILED'} (${elapsed()})`)
    if (!ok) process.exitCode = 1
  }
}

main().catch(fail)
