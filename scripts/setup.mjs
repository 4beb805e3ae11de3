#!/usr/bin/env node
/**
 * `npm run setup`: makes a checkout ready to use. System packages, npm packages, oneDNN, the addon, the TypeScript; each
 * step runs only when its inputs changed. Plain Node: this runs before `npm ci`.
 *
 *   --test         also what the tests need: GoogleTest, clang-format, the CUDA compiler, the native tests
 *   --cuda         the CUDA compiler, into .cache, and the CUDA backend with it
 *   --cuda-architectures '80;90a'  GPUs that kernels are compiled for, kept for later builds
 *   --cuda-libraries  also NVIDIA's libraries (900 MB), into .cache: for machines without them, and tests that ask the real ones
 *   --build-only   only the addon and the TypeScript
 *   --jobs N       compilers at once
 */
import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { buildNative, buildTs, checkNode, defaultJobs, installNpm, nativeCurrent, npmCurrent, tsCurrent } from './lib/build.mjs'
import { checkCudaArchitectures, cudaInstalled, installCuda, keepCudaArchitectures } from './lib/cuda.mjs'
import { cudaLibrariesInstalled, installCudaLibraries } from './lib/cuda_libraries.mjs'
import { alone } from './lib/lock.mjs'
import { installOnednn, onednnInstalled } from './lib/onednn.mjs'
import { fail, SetupError, say } from './lib/run.mjs'
import { ensureSystem } from './lib/system.mjs'

const USAGE = "npm run setup -- [--test] [--cuda] [--cuda-architectures '80;90a'] [--cuda-libraries] [--build-only] [--jobs N]"

/** What the head of this file says of each. */
const help = () =>
  readFileSync(new URL(import.meta.url), 'utf8')
    .match(/^ \* {3}--.*$/gm)
    .map((line) => line.slice(3))
    .join('\n')

/** Undefined where they are only asked for. */
function options() {
  try {
    const { values } = parseArgs({
      options: {
        test: { type: 'boolean', default: false },
        cuda: { type: 'boolean', default: false },
        'cuda-architectures': { type: 'string' },
        'cuda-libraries': { type: 'boolean', default: false },
        'build-only': { type: 'boolean', default: false },
        jobs: { type: 'string' },
        help: { type: 'boolean', short: 'h', default: false },
      },
    })
    if (values.help) return undefined
    const jobs = values.jobs === undefined ? defaultJobs() : Number(values.jobs)
    if (!Number.isInteger(jobs) || jobs < 1) throw new Error(`--jobs ${values.jobs}: expected a whole number from 1`)
    const {
      test: tests,
      cuda,
      'cuda-architectures': architectures,
      'cuda-libraries': libraries,
      'build-only': buildOnly,
    } = values
    if (architectures !== undefined) checkCudaArchitectures(architectures)
    return { tests, cuda: cuda || tests || libraries, architectures, libraries, buildOnly, jobs }
  } catch (e) {
    throw new SetupError(e.message, USAGE, 64)
  }
}

async function setup({ tests, cuda, architectures, libraries, buildOnly, jobs }) {
  if (architectures !== undefined) keepCudaArchitectures(architectures)
  const need = {
    onednn: !onednnInstalled(),
    cuda: cuda && !cudaInstalled(),
    libraries: libraries && !cudaLibrariesInstalled(),
    npm: !npmCurrent(),
    native: !nativeCurrent(tests, cuda),
    ts: !tsCurrent(),
  }
  if (!Object.values(need).some(Boolean)) {
    say('setup', 'everything is up to date')
    return
  }
  if (!buildOnly) {
    if (need.onednn || need.cuda || need.libraries || need.native)
      await ensureSystem({ pip: need.onednn || need.cuda || need.libraries, tests })
    if (need.npm) await installNpm()
    if (need.onednn) await installOnednn()
    if (need.cuda) await installCuda()
    if (need.libraries) await installCudaLibraries()
  }
  if (need.ts) await buildTs()
  if (need.native) await buildNative({ tests, jobs })
  say('setup', 'done')
}

async function main() {
  const asked = options()
  if (!asked) {
    process.stdout.write(`${USAGE}\n\n${help()}\n`)
    return
  }
  checkNode()
  await alone(() => setup(asked))
}

main().catch(fail)
