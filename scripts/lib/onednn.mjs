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
import { cache, SetupError, say } from './run.mjs'
import { sha256File } from './stamp.mjs'
import { downloadWheels, tool, unpackWheel, workFolder } from './wheels.mjs'

export const ONEDNN_VERSION = '3.2.0'
export const ONEDNN_DIR = path.join(cache, `onednn-${ONEDNN_VERSION}`)
const SONAME = 'libeffnet_dnnl.so.3'
const WHEEL_VERSION = '2023.2.0'
const WHEELS = [
  {
    name: 'onednn-cpu-gomp',
    version: WHEEL_VERSION,
    file: `onednn_cpu_gomp-${WHEEL_VERSION}-py2.py3-none-manylinux1_x86_64.whl`,
    sha256: '2f22a54d6a890ed14bfa185d42a4be65d8b5b1df85dc1f0f3a9abe31620416fb',
  },
  {
    name: 'onednn-devel-cpu-gomp',
    version: WHEEL_VERSION,
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

const isSycl = (name) => name.includes('sycl')
function copyTree(from, to) {
  mkdirSync(to, { recursive: true })
  for (const e of readdirSync(from, { withFileTypes: true })) {
    if (isSycl(e.name)) continue
    if (e.isDirectory()) copyTree(path.join(from, e.name), path.join(to, e.name))
    else copyFileSync(path.join(from, e.name), path.join(to, e.name))
  }
}

/** Downloads, unpacks, strips and renames the library; the folder appears only when it is whole. */
export async function installOnednn() {
  if (process.arch !== 'x64' || process.platform !== 'linux') {
    throw new SetupError(`the CPU backend is for Linux on x86-64; this is ${process.platform}-${process.arch}`, undefined, 69)
  }
  await downloadWheels('oneDNN', WHEELS)
  const work = workFolder('onednn')
  mkdirSync(path.join(work, 'result/lib'), { recursive: true })
  const part = (w, rest) => path.join(work, w.name, `${w.name.replaceAll('-', '_')}-${WHEEL_VERSION}.data/data`, rest)
  for (const w of WHEELS) unpackWheel('oneDNN', w, path.join(work, w.name))
  const [runtime, headers] = WHEELS
  const library = path.join(work, 'result/lib', SONAME)
  copyFileSync(part(runtime, 'lib/libdnnl.so.3.2'), library)
  const found = sha256File(library)
  if (found !== LIBRARY_SHA256)
    throw new SetupError(`oneDNN: libdnnl.so.3.2 has checksum ${found}, expected ${LIBRARY_SHA256}`, undefined, 69)
  chmodSync(library, 0o755)
  tool('oneDNN', 'strip', ['--strip-unneeded', library])
  tool('oneDNN', 'patchelf', ['--set-soname', SONAME, library])
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
