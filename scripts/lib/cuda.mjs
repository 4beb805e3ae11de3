/**
 * The CUDA compiler and headers, from the wheels that NVIDIA publishes: what compiles the kernels where no toolkit is installed.
 * Nothing of it is shipped; the driver and NVIDIA's libraries are looked for when the backend runs.
 */
import { chmodSync, existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { cache, say } from './run.mjs'
import { downloadWheels, unpackWheel, workFolder } from './wheels.mjs'

const VERSION = '13.0'
const CUDA_DIR = path.join(cache, `cuda-${VERSION}`)
const wheel = (name, version, platform, sha256) => ({
  name,
  version,
  file: `${name.replaceAll('-', '_')}-${version}-py3-none-${platform}.whl`,
  sha256,
})
const MANY_2014 = 'manylinux2014_x86_64.manylinux_2_17_x86_64'
const WHEELS = [
  wheel('nvidia-cuda-nvcc', '13.0.88', MANY_2014, '56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03'),
  wheel('nvidia-cuda-crt', '13.0.88', MANY_2014, '2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4'),
  wheel(
    'nvidia-nvvm',
    '13.0.88',
    'manylinux2010_x86_64.manylinux_2_12_x86_64',
    'c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0',
  ),
  wheel('nvidia-cuda-runtime', '13.0.96', MANY_2014, '7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548'),
  wheel('nvidia-cuda-cccl', '13.0.85', MANY_2014, 'e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649'),
]
const manifestFile = path.join(CUDA_DIR, 'manifest.json')
const manifest = `${JSON.stringify({ wheels: WHEELS.map((w) => `${w.name}==${w.version}`) }, null, 2)}\n`

/** Whether the folder holds this version, whole. */
export const cudaInstalled = () => existsSync(manifestFile) && readFileSync(manifestFile, 'utf8') === manifest

/** Every file of a folder of tools may be run: archives of wheels do not keep that. */
function makeExecutable(folder) {
  for (const e of readdirSync(folder, { withFileTypes: true })) {
    const file = path.join(folder, e.name)
    if (e.isDirectory()) makeExecutable(file)
    else chmodSync(file, 0o755)
  }
}

/** Downloads and unpacks; the folder appears only when it is whole. CMake finds it there. */
export async function installCuda() {
  await downloadWheels('CUDA', WHEELS)
  const work = workFolder('cuda')
  for (const w of WHEELS) unpackWheel('CUDA', w, work)
  const toolkit = path.join(work, 'nvidia/cu13')
  for (const tools of ['bin', 'nvvm/bin']) makeExecutable(path.join(toolkit, tools))
  writeFileSync(path.join(work, 'nvidia/manifest.json'), manifest)
  rmSync(CUDA_DIR, { recursive: true, force: true })
  renameSync(path.join(work, 'nvidia'), CUDA_DIR)
  rmSync(work, { recursive: true, force: true })
  say('CUDA', `compiler ${WHEELS[0].version} ready, checksums verified`)
}
