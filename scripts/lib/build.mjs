/** The steps that make something: npm packages, the addon (and native tests), the TypeScript. Each knows when it is current. */
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import os from 'node:os'
import path from 'node:path'
import { cudaArchitectures, cudaInstalled } from './cuda.mjs'
import { cudaLibrariesInstalled } from './cuda_libraries.mjs'
import { root, run, SetupError, say } from './run.mjs'
import { filesUnder, hashInputs, isCurrent, writeStamp } from './stamp.mjs'

const at = (...p) => path.join(root, ...p)
const ADDON = 'build/Release/effnet.node'
const CUDA_BACKEND = 'build/Release/effnet_cuda.so'

/** Compilers at once: one per CPU, fewer where memory is short (a SIMD kernel file takes up to 1 GB to compile). */
export function defaultJobs() {
  return Math.max(1, Math.min(os.availableParallelism(), Math.floor(os.totalmem() / 2 ** 30 / 1.2)))
}

// ---- npm packages ------------------------------------------------------------------------------------------------

const npmHash = () => hashInputs(['package.json', 'package-lock.json'])
export function npmCurrent() {
  const installed = at('node_modules/.package-lock.json')
  if (!existsSync(installed)) return false
  if (isCurrent('npm', npmHash(), [])) return true
  return statSync(installed).mtimeMs >= statSync(at('package-lock.json')).mtimeMs
}
export async function installNpm() {
  await run('npm', 'npm', ['ci', '--no-audit', '--no-fund'], { mend: 'check the network and proxy, then run again' })
  writeStamp('npm', npmHash())
  say('npm', 'packages of package-lock.json installed')
}

// ---- addon -------------------------------------------------------------------------------------------------------

const nativeInputs = (tests) =>
  ['native', 'CMakeLists.txt']
    .flatMap(filesUnder)
    .filter((f) => (tests || !f.startsWith('native/tests')) && !f.startsWith('native/lab'))
const nativeHash = (tests) =>
  hashInputs(
    [...nativeInputs(tests), 'package-lock.json'],
    [process.arch, root, `cuda ${cudaInstalled()} ${cudaLibrariesInstalled()} ${cudaArchitectures()}`],
  )
const nativeName = (tests) => (tests ? 'native-tests' : 'addon')

/** Whether the build tree has, or will have once it is configured, a CUDA compiler: the backend is built then. */
const buildsCuda = () => cudaInstalled() || !/^(|.*-NOTFOUND)$/.test(cmakeCache('NVCC:FILEPATH') ?? '')

/** `cuda`: the backend is asked for, wherever its compiler comes from. */
export const nativeCurrent = (tests, cuda = false) =>
  isCurrent(nativeName(tests), nativeHash(tests), cuda || buildsCuda() ? [ADDON, CUDA_BACKEND] : [ADDON])

/**
 * One build tree for the addon and the native tests, so that the kernels are compiled once. cmake-js takes Node-API headers
 * from an npm package (`binary.napi_versions` in package.json): nothing of Node itself is downloaded.
 */
export async function buildNative({ tests, jobs }) {
  const hash = nativeHash(tests)
  dropForeignTree()
  const cmakeJs = createRequire(at('package.json')).resolve('cmake-js/bin/cmake-js')
  const args = [cmakeJs, 'build', '--out', at('build'), '--config', 'Release', '--parallel', String(jobs)]
  if (tests) args.push('--CDEFFNET_TESTS=ON')
  else args.push('--target', 'effnet')
  const architectures = cudaArchitectures()
  if (architectures !== undefined) args.push(`--CDEFFNET_CUDA_ARCHITECTURES=${architectures}`)
  const mend = 'the compiler output above names the file; `rm -r build` starts over'
  // A tree keeps the tests, compilers, libraries and architectures that it was configured with until it is configured again.
  await run('native', process.execPath, args.with(1, 'configure'), { mend })
  await run('native', process.execPath, args, { mend })
  if (!existsSync(at(ADDON))) throw new SetupError(`the build ended well, but ${ADDON} is not there`)
  writeStamp(nativeName(tests), hash)
  if (tests) writeStamp(nativeName(false), nativeHash(false))
  say('native', `${ADDON} built with ${jobs} job${jobs === 1 ? '' : 's'}${tests ? ', native tests too' : ''}`)
}

/** An entry of the build tree's configuration; undefined without a tree. */
function cmakeCache(entry) {
  const file = at('build/CMakeCache.txt')
  const line =
    existsSync(file) &&
    readFileSync(file, 'utf8')
      .split('\n')
      .find((each) => each.startsWith(`${entry}=`))
  return line ? line.slice(entry.length + 1) : undefined
}

/** A build tree that CMake made at another place (a moved or copied checkout) cannot be used again. */
function dropForeignTree() {
  const home = cmakeCache('CMAKE_HOME_DIRECTORY:INTERNAL')
  if (home !== undefined && home !== root) rmSync(at('build'), { recursive: true, force: true })
}

// ---- TypeScript --------------------------------------------------------------------------------------------------

const tsHash = () => hashInputs(['ts', 'tsconfig.json', 'package.json', 'package-lock.json', 'scripts/lib/build.mjs'])
const TS_OUTPUTS = ['dist/index.js', 'dist/index.cjs', 'dist/index.d.ts', 'dist/index.d.cts']
export const tsCurrent = () => isCurrent('ts', tsHash(), TS_OUTPUTS)

/** ESM by tsc; one CommonJS file beside it by esbuild, with declarations that Node16 resolution reads as CommonJS. */
export async function buildTs() {
  const hash = tsHash()
  const next = at('dist-next')
  rmSync(next, { recursive: true, force: true })
  const require = createRequire(at('package.json'))
  const tsc = path.join(path.dirname(require.resolve('typescript/package.json')), 'bin/tsc')
  await run('tsc', process.execPath, [tsc, '-p', 'tsconfig.json', '--outDir', next], { mend: 'mend the type errors above' })
  const esbuild = require('esbuild')
  await esbuild.build({
    entryPoints: [path.join(next, 'index.js')],
    outfile: path.join(next, 'index.cjs'),
    bundle: true,
    platform: 'node',
    format: 'cjs',
    target: 'node20.17',
    packages: 'external',
    sourcemap: true,
    logLevel: 'error',
    define: { 'import.meta.url': 'importMetaUrl' },
    banner: { js: "const importMetaUrl = require('node:url').pathToFileURL(__filename).href;" },
  })
  copyDeclarations(next, path.join(next, 'cjs-types'))
  writeFileSync(path.join(next, 'cjs-types/package.json'), '{ "type": "commonjs" }\n')
  writeFileSync(path.join(next, 'index.d.cts'), "export * from './cjs-types/index.js'\n")
  rmSync(at('dist'), { recursive: true, force: true })
  renameSync(next, at('dist'))
  writeStamp('ts', hash)
  say('ts', `dist/ built (${readdirSync(at('dist')).length} entries, ESM and CommonJS)`)
}

function copyDeclarations(from, to) {
  mkdirSync(to, { recursive: true })
  for (const e of readdirSync(from, { withFileTypes: true })) {
    const source = path.join(from, e.name)
    if (source === to) continue
    if (e.isDirectory()) copyDeclarations(source, path.join(to, e.name))
    else if (e.name.endsWith('.d.ts')) cpSync(source, path.join(to, e.name))
  }
}

/** Node of package.json's `engines`; checked first, as every later step depends on it. */
export function checkNode() {
  const { engines } = JSON.parse(readFileSync(at('package.json'), 'utf8'))
  const [major, minor] = /(\d+)\.(\d+)/.exec(engines.node).slice(1).map(Number)
  const [haveMajor, haveMinor] = process.versions.node.split('.').map(Number)
  if (haveMajor < major || (haveMajor === major && haveMinor < minor)) {
    throw new SetupError(`Node ${process.versions.node} is too old: ${engines.node} is needed`, 'install Node 20 or newer', 69)
  }
}
