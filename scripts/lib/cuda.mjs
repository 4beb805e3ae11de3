/**
 * The CUDA compiler and headers, and the disassemblers that its tests want, from the wheels that NVIDIA publishes: what compiles the
 * kernels where no toolkit is installed. Nothing of it is shipped; the driver and NVIDIA's libraries are looked for when the backend
 * runs.
 */
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { cache, say } from './run.mjs'
import { downloadWheels, unpackWheel, workFolder } from './wheels.mjs'

const wheel = (name, version, platform, sha256) => ({
  name,
  version,
  file: `${name.replaceAll('-', '_')}-${version}-py3-none-${platform}.whl`,
  sha256,
})
const MANY_2014 = 'manylinux2014_x86_64.manylinux_2_17_x86_64'

const COMPILER = {
  folder: path.join(cache, 'cuda-13.0'),
  tools: ['bin', 'nvvm/bin'],
  wheels: [
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
  ],
}
// Of the compiler's own version there are none as wheels; these read its code.
const DISASSEMBLERS = {
  folder: path.join(cache, 'cuda-disassemblers-13.5'),
  tools: ['bin'],
  wheels: [
    wheel('nvidia-cuda-cuobjdump', '13.5.37', MANY_2014, '38780fee50863252a0b8926357faa91615ca1c8346490563f33a06100cd73f58'),
    wheel('nvidia-cuda-nvdisasm', '13.5.37', MANY_2014, 'd3fdbdd49fa53e2e4aacd3db8259d052bd2b049ececdcb69e92e083c6728e7ca'),
  ],
}

/** Where they are; what is in PATH takes their place where they are not. */
export const disassemblerFolder = path.join(DISASSEMBLERS.folder, 'cu13/bin')

const manifestOf = ({ wheels }) => `${JSON.stringify({ wheels: wheels.map((w) => `${w.name}==${w.version}`) }, null, 2)}\n`

/** Whether the folder holds this version, whole. */
function installed(set) {
  const file = path.join(set.folder, 'manifest.json')
  return existsSync(file) && readFileSync(file, 'utf8') === manifestOf(set)
}
export const cudaInstalled = () => installed(COMPILER) && installed(DISASSEMBLERS)

const architecturesFile = path.join(cache, 'cuda-architectures')
/** What `--cuda-architectures` said last; undefined: what CMakeLists.txt says. */
export const cudaArchitectures = () =>
  existsSync(architecturesFile) ? readFileSync(architecturesFile, 'utf8').trim() : undefined

/** @throws Error for what nvcc has no such name for */
export function checkCudaArchitectures(list) {
  const bad = list.split(';').filter((each) => !/^(\d{2,3}[af]?|\d{2,3}-ptx)$/.test(each) || Number.parseInt(each, 10) < 80)
  if (bad.length > 0)
    throw new Error(`--cuda-architectures ${list}: "${bad[0]}" is none; expected such as 80, 90a or 80-ptx, from 80, joined by ;`)
}

/** Kept for every later build. */
export function keepCudaArchitectures(list) {
  mkdirSync(cache, { recursive: true })
  writeFileSync(architecturesFile, `${list}\n`)
}

/** Every file of a folder of tools may be run: archives of wheels do not keep that. */
function makeExecutable(folder) {
  for (const e of readdirSync(folder, { withFileTypes: true })) {
    const file = path.join(folder, e.name)
    if (e.isDirectory()) makeExecutable(file)
    else chmodSync(file, 0o755)
  }
}

/** Downloads and unpacks what is not there; a folder appears only when it is whole. CMake and the tests find them there. */
export async function installCuda() {
  for (const set of [COMPILER, DISASSEMBLERS]) {
    if (installed(set)) continue
    await downloadWheels('CUDA', set.wheels)
    const work = workFolder('cuda')
    for (const w of set.wheels) unpackWheel('CUDA', w, work)
    for (const tools of set.tools) makeExecutable(path.join(work, 'nvidia/cu13', tools))
    writeFileSync(path.join(work, 'nvidia/manifest.json'), manifestOf(set))
    rmSync(set.folder, { recursive: true, force: true })
    renameSync(path.join(work, 'nvidia'), set.folder)
    rmSync(work, { recursive: true, force: true })
    say('CUDA', `${path.basename(set.folder)} ready, checksums verified`)
  }
}
