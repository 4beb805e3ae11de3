/** How each contender is started. */
import { existsSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { cache, root, SetupError } from '../../scripts/lib/run.mjs'
import { onnxFolder, peerNode, peerPython } from '../peers.mjs'

const FOLDERS = {
  // Where .ci/run looks for them too.
  samples: () => path.join(process.env.EFFNET_TEST_DATA ?? path.join(root, '../shared/data'), 'imagenet-samples/images'),
  demo: () => {
    const train = path.join(root, 'models/demo/train')
    return path.join(train, readdirSync(train)[0])
  },
}

/** The folder of photos that a contender reads. */
function dataFolder(name) {
  const folder = FOLDERS[name]()
  if (existsSync(folder)) return folder
  throw new SetupError(
    'the data row needs the ImageNet samples, which are not part of this repository',
    'EFFNET_TEST_DATA=FOLDER with imagenet-samples/images in it; or leave the row out with --case',
    66,
  )
}

const pairs = (values) =>
  Object.entries(values)
    .filter(([, v]) => v !== undefined)
    .flatMap(([k, v]) => [`--${k}`, String(v)])

/** [program, ...args] and the environment of a contender from cases.mjs. */
export function commandOf(spec, { threads, warmup }) {
  const work = pairs({
    mode: spec.mode,
    model: spec.model,
    'batch-size': spec.batchSize,
    'image-size': spec.imageSize,
    precision: spec.precision,
    data: spec.data && dataFolder(spec.data),
    threads,
    warmup: spec.data ? 4 * warmup : warmup,
  })
  const script = (name) => path.join(root, 'bench/contenders', name)
  const node = (name, extra = {}) => [process.execPath, script(name), ...work, ...pairs(extra)]
  const python = (name, ...extra) => [peerPython, '-B', script(path.join('py', name)), ...work, ...extra]
  const env = { OMP_NUM_THREADS: String(threads), TORCHINDUCTOR_CACHE_DIR: path.join(cache, 'peers-inductor') }
  switch (spec.who) {
    case 'effnet':
      return { command: node('effnet.mjs'), env: {} }
    case 'sharp':
      return {
        command: node('sharp.mjs', { jobs: spec.jobs, concurrency: spec.concurrency }),
        env: { UV_THREADPOOL_SIZE: String(2 * spec.jobs) },
      }
    case 'ort_node':
      return { command: node('ort_node.mjs', { module: peerNode, cache: onnxFolder }), env: {} }
    case 'ort':
      return { command: python('ort_cpu.py', '--cache', onnxFolder), env: {} }
    case 'torch':
      return { command: python('torch_cpu.py', ...(spec.compile ? ['--compile'] : [])), env }
    case 'torch_data':
      return { command: python('torch_data.py', '--normalize', spec.normalize), env: { OMP_NUM_THREADS: '1' } }
    default:
      throw new Error(`no contender ${spec.who}`)
  }
}
