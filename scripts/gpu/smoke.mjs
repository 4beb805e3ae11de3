/** The GPU as the backend sees it. Exit code 69 where it sees none. */
import { binding } from '../../dist/binding.js'

const cuda = await binding().cudaInfo()
process.stdout.write(`${JSON.stringify({ ...binding().version(), node: process.versions.node, ...cuda }, null, 1)}\n`)
if (cuda.unavailable !== null || cuda.gpus.length === 0) {
  process.stdout.write(`no GPU: ${cuda.unavailable ?? 'the driver names none'}\n`)
  process.exit(69)
}
const device = await binding().openDevice('cuda:0')
const { name, availableBytes } = binding().deviceInfo(device)
const { computeCapability } = cuda.gpus[0]
process.stdout.write(
  `${name}, compute capability ${computeCapability.toFixed(1)}, ${(availableBytes / 2 ** 30).toFixed(1)} GiB free, CUDA ${cuda.driverVersion}\n`,
)
