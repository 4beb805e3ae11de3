/** The GPU as the backend sees it, then each instruction of the kernels by itself. Exit code 69 where it sees none, 3 where instructions fail. */
import { spawnSync } from 'node:child_process'
import { binding } from '../../dist/binding.js'
import { beginCall } from './call.mjs'

const cuda = await binding().cudaInfo()
const call = beginCall(cuda)
process.stdout.write(`${JSON.stringify({ call, ...binding().version(), node: process.versions.node, ...cuda }, null, 1)}\n`)
if (cuda.unavailable !== null || cuda.gpus.length === 0) {
  process.stdout.write(`no GPU: ${cuda.unavailable ?? 'the driver names none'}\n`)
  process.exit(69)
}
const device = await binding().openDevice('cuda:0')
const { name, availableBytes } = binding().deviceInfo(device)
const { computeCapability } = cuda.gpus[0]
const { status, error, stdout, stderr } = spawnSync('tests/gpu_instructions_test', [], { encoding: 'utf8', timeout: 30_000 })
process.stdout.write(`${stdout ?? ''}${stderr ?? ''}`)
const instructions = status === 0 ? 'instructions as defined' : `instructions FAILED (${error?.code ?? `exit code ${status}`})`
const tanh = [...(stdout ?? '').matchAll(/^tanh_fast is off by up to (\S+) .* for (\w+),/gm)].map(
  ([, off, type]) => `${off} (${type})`,
)
const libraries = cuda.libraries
  .map(({ name, version, path }) => (version ? `${name} ${version} ${path}` : `${name} MISSING`))
  .join(', ')
process.exitCode = status === 0 ? 0 : 3
process.stdout.write(
  `${instructions}; tanh_fast off by ${tanh.join(', ') || 'what nobody knows'}; ${name}, compute capability ${computeCapability.toFixed(1)}, ${(availableBytes / 2 ** 30).toFixed(1)} GiB free, driver ${cuda.driverRelease || 'of an unknown release'}, CUDA ${cuda.driverVersion}; ${libraries}\n`,
)
