/**
 * oneDNN 3.2 from the wheels that Intel publishes, at pinned versions and hashes. The library gets a soname of its own, so
 * that it never meets another oneDNN of the same process.
 */
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { cache, probe, root, run, SetupError, say } from './run.mjs'
import { sha256File } from './stamp.mjs'

export const ONEDNN_VERSION = '3.2.0'
export const ONEDNN_DIR = path.join(cache, `onednn-${ONEDNN_VERSION}`)
const SONAME = 'libeffnet_dnnl.so.3'
const WHEEL_VERSION = '2023.2.0'
const WHEELS = [
  {
    name: 'onednn-cpu-gomp',
    file: `onednn_cpu_gomp-${WHEEL_VERSION}-py2.py3-none-manylinux1_x86_64.whl`,
    sha256: '2f22a54d6a890ed14bfa185d42a4be65d8b5b1df85dc1f0f3a9abe31620416fb',
  },
  {
    name: 'onednn-devel-cpu-gomp',
    file: `onednn_devel_cpu_gomp-${WHEEL_VERSION}-py2.py3-none-manylinux1_x86_64.whl`,
    sha256: '9763c69e8c907e119056bd52ad918ca84ac9ba939d130a99dfa95ccca3e5e284',
  },
]
const LIBRARY_SHA256 = 'e6376208cf6bacb041c346b504207e3aa1189a13f941c92a4383a55ac27058ae'
const manifestFile = path.join(ONEDNN_DIR, 'manifest.json')

/** True when the folder holds what its manifest says (`deep` also hashes the library). */
export function onednnInstalled(deep = false) {
  const library = path.join(ONEDNN_DIR, 'lib', SONAME)
  if (!existsSync(manifestFile) || !existsSync(library)) return false
  const manifest = JSON.parse(readFileSync(manifestFile, 'utf8'))
  return manifest.source === LIBRARY_SHA256 && (!deep || manifest.library === sha256File(library))
}

async function download(folder) {
  mkdirSync(folder, { recursive: true })
  const present = (w) => existsSync(path.join(folder, w.file)) && sha256File(path.join(folder, w.file)) === w.sha256
  if (WHEELS.every(present)) return
  const requirements = path.join(folder, 'onednn-requirements.txt')
  writeFileSync(requirements, WHEELS.map((w) => `${w.name}==${WHEEL_VERSION} --hash=sha256:${w.sha256}\n`).join(''))
  const args = [
    '-m',
    'pip',
    'download',
    '--no-deps',
    '--only-binary=:all:',
    '--require-hashes',
    '--retries',
    '5',
    '--disable-pip-version-check',
  ]
  await run('oneDNN', 'python3', [...args, '--progress-bar', 'off', '--dest', folder, '-r', requirements], {
    mend: `check the network and proxy, then run again; or put ${WHEELS.map((w) => w.file).join(' and ')} into ${path.relative(root, folder)}/`,
    exitCode: 69,
  })
  const bad = WHEELS.filter((w) => !present(w))
  if (bad.length > 0)
    throw new SetupError(
      `oneDNN: wrong checksum of ${bad.map((w) => w.file).join(', ')}`,
      `rm -r ${path.relative(root, folder)} and run again`,
      69,
    )
}

const isSycl = (name) => name.includes('sycl')
function copyTree(from, to) {
  mkdirSync(to, { recursive: true })
  for (const e of readdirSync(from, { withFileTypes: true })) {
    if (isSycl(e.name)) continue
    if (e.isDirectory()) copyTree(path.join(from, e.name), path.join(to, e.name))
    else copyFileSync(path.join(from, e.name), path.join(to, e.name))
  }
}

/** Runs a tool that must succeed, with its own words in the error. */
function tool(command, args) {
  const r = probe(command, args)
  if (r.status !== 0)
    throw new SetupError(
      `oneDNN: ${command} ${args.join(' ')} failed: ${r.stderr.trim() || `exit code ${r.status}`}`,
      undefined,
      69,
    )
}

/** Downloads, unpacks, strips and renames the library; the folder appears only when it is whole. */
export async function installOnednn() {
  if (process.arch !== 'x64' || process.platform !== 'linux') {
    throw new SetupError(`the CPU backend is for Linux on x86-64; this is ${process.platform}-${process.arch}`, undefined, 69)
  }
  const downloads = path.join(cache, 'downloads')
  await download(downloads)
  const work = path.join(cache, `onednn-${process.pid}`)
  rmSync(work, { recursive: true, force: true })
  mkdirSync(path.join(work, 'result/lib'), { recursive: true })
  const part = (w, rest) => path.join(work, w.name, `${w.name.replaceAll('-', '_')}-${WHEEL_VERSION}.data/data`, rest)
  for (const w of WHEELS) tool('python3', ['-m', 'zipfile', '-e', path.join(downloads, w.file), path.join(work, w.name)])
  const [runtime, headers] = WHEELS
  const library = path.join(work, 'result/lib', SONAME)
  copyFileSync(part(runtime, 'lib/libdnnl.so.3.2'), library)
  const found = sha256File(library)
  if (found !== LIBRARY_SHA256)
    throw new SetupError(`oneDNN: libdnnl.so.3.2 has checksum ${found}, expected ${LIBRARY_SHA256}`, undefined, 69)
  chmodSync(library, 0o755)
  tool('strip', ['--strip-unneeded', library])
  tool('patchelf', ['--set-soname', SONAME, library])
  copyTree(part(headers, 'include'), path.join(work, 'result/include'))
  for (const name of ['LICENSE', 'THIRD-PARTY-PROGRAMS'])
    copyFileSync(part(runtime, `share/doc/onednn/${name}`), path.join(work, 'result', name))
  const manifest = {
    version: ONEDNN_VERSION,
    wheels: WHEELS.map((w) => `${w.name}==${WHEEL_VERSION}`),
    source: LIBRARY_SHA256,
    library: sha256File(library),
  }
  writeFileSync(path.join(work, 'result/manifest.json'), `${JSON.stringify(manifest, null, 2)}\n`)
  rmSync(ONEDNN_DIR, { recursive: true, force: true })
  renameSync(path.join(work, 'result'), ONEDNN_DIR)
  rmSync(work, { recursive: true, force: true })
  say('oneDNN', `${ONEDNN_VERSION} ready, checksum verified`)
}
