/**
 * NVIDIA's libraries that the CUDA backend uses where it finds them, and the headers that its cuDNN part is compiled against, from
 * the wheels that NVIDIA publishes: for machines without them, and for the tests that ask the real ones. Nothing of it is shipped.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { cache, say } from './run.mjs'
import { downloadWheels, unpackWheel, workFolder } from './wheels.mjs'

const FOLDER = path.join(cache, 'cuda-libraries-13.0')
const wheel = (name, version, tags, sha256) => ({
  name,
  version,
  file: `${name.replaceAll('-', '_')}-${version}-${tags}.whl`,
  sha256,
})
const LIBRARIES = [
  wheel(
    'nvidia-cudnn-cu13',
    '9.19.0.56',
    'py3-none-manylinux_2_27_x86_64',
    'd20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf',
  ),
  wheel(
    'nvidia-cublas',
    '13.0.2.14',
    'py3-none-manylinux_2_27_x86_64',
    '0cf238ffdbe46c00cb9aa98e7bca745c223a5ca5a53e686ac8b3e5a08fe80d6c',
  ),
  wheel(
    'nvidia-cuda-nvrtc',
    '13.0.88',
    'py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64',
    'ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575',
  ),
  wheel(
    'nvidia-nvjpeg',
    '13.3.2.43',
    'py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64',
    '27f9c4a25a73f1d1ad35c342c8d657c8ff43e23877f338ef15fb2602ac2e5aa8',
  ),
]
/** Headers only, in a wheel that has Python bindings too: of which Python does not matter. */
const FRONTEND = [
  wheel(
    'nvidia-cudnn-frontend',
    '1.32.0',
    'cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64',
    'c6006556017a4d1c914c52a556c71b1267f2d6a0500f742e7b4edef539878df0',
  ),
]
const FRONTEND_TARGET = ['--python-version', '3.11', '--implementation', 'cp', '--platform', 'manylinux_2_28_x86_64']
const WHEELS = [...LIBRARIES, ...FRONTEND]
const manifestFile = path.join(FOLDER, 'manifest.json')
const manifest = `${JSON.stringify({ wheels: WHEELS.map((w) => `${w.name}==${w.version}`) }, null, 2)}\n`

/** Whether the folder holds these versions, whole. */
export const cudaLibrariesInstalled = () => existsSync(manifestFile) && readFileSync(manifestFile, 'utf8') === manifest

/** Moves what is in `from` into `to`, where it is. */
function moveInto(from, to) {
  if (!existsSync(from)) return
  mkdirSync(to, { recursive: true })
  for (const name of readdirSync(from)) renameSync(path.join(from, name), path.join(to, name))
}

/** Downloads and unpacks into one folder of headers and one of libraries, which appear only when they are whole. */
export async function installCudaLibraries() {
  await downloadWheels('CUDA-libraries', LIBRARIES)
  await downloadWheels('cuDNN-frontend', FRONTEND, FRONTEND_TARGET)
  const work = workFolder('cuda-libraries')
  const result = path.join(work, 'result')
  for (const w of WHEELS) {
    const part = path.join(work, w.name)
    unpackWheel('CUDA-libraries', w, part)
    for (const kind of ['include', 'lib'])
      for (const at of [kind, `nvidia/cu13/${kind}`, `nvidia/cudnn/${kind}`])
        moveInto(path.join(part, at), path.join(result, kind))
  }
  writeFileSync(path.join(result, 'manifest.json'), manifest)
  rmSync(FOLDER, { recursive: true, force: true })
  renameSync(result, FOLDER)
  rmSync(work, { recursive: true, force: true })
  say('CUDA', `libraries ready: EFFNET_LIB_DIR=${path.join(FOLDER, 'lib')} uses them`)
}
