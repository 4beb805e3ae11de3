/** What a CUDA backend must have that goes to everybody, and what the built one has. */
import { existsSync } from 'node:fs'
import path from 'node:path'
import { probe, root, SetupError } from './run.mjs'

/** All GPUs that the package is for: a cubin each, and PTX for those that come later. */
export const RELEASE_ARCHITECTURES = '80;86;89;90a;100;120;80-ptx'

export const RELEASE_SETUP = `npm run setup -- --cuda-libraries --cuda-architectures '${RELEASE_ARCHITECTURES}'`

/**
 * As the built backend says of itself, by the addon beside it: `architectures` that it has kernels for ("" without a backend), and
 * whether cuDNN's part is compiled in.
 */
export function builtCuda(folder = path.join(root, 'build/Release')) {
  const addon = path.join(folder, 'effnet.node')
  if (!existsSync(path.join(folder, 'effnet_cuda.so'))) return { architectures: '', cudnn: false }
  const ask = `require(${JSON.stringify(addon)}).cudaInfo().then((info) => console.log(JSON.stringify(info)))`
  const { status, stdout, stderr } = probe(process.execPath, ['--input-type=commonjs', '-e', ask])
  if (status !== 0) throw new SetupError(`${addon} does not tell what it has: ${stderr.trim()}`, 'npm run setup')
  const { architectures, cudnn } = JSON.parse(stdout)
  return { architectures, cudnn }
}

const sorted = (architectures) => architectures.split(';').toSorted().join(';')

/** Why such a backend is for some machines only; empty: it is for all. */
export function lacksForRelease({ architectures, cudnn }) {
  if (architectures === '') return 'there is no CUDA backend'
  if (sorted(architectures) !== sorted(RELEASE_ARCHITECTURES))
    return `kernels are compiled for ${architectures}, a release has them for ${RELEASE_ARCHITECTURES}`
  return cudnn ? '' : "cuDNN's part is not compiled in"
}
