/** The launches of whole networks, written down by a driver without a GPU (native/cuda/fake) that runs none of them. */
import path from 'node:path'
import { root } from './run.mjs'

const NETWORKS = [
  ['efficientnet_b0', 224],
  ['efficientnet_b4', 380],
  ['efficientnetv2_s', 300],
]
const PRECISIONS = ['bf16-mixed', 'fp16-mixed', 'tf32', 'fp32']
const BATCHES = [1, 32]
/** Of a plan that has every op which training can have. */
export const TRAINING = {
  optimizer: { name: 'rmsprop_tf' },
  labelSmoothing: 0.1,
  dropRate: 0.2,
  dropPathRate: 0.2,
  ema: true,
  clip: true,
}

/**
 * From here on this process's GPU is that driver, with own kernels only, and launches go into `file`. Before the backend is used
 * first; `more` is further variables.
 */
export function noteLaunches(file, more = {}) {
  Object.assign(process.env, {
    EFFNET_LIB_DIR: path.join(root, 'build/fake_cuda'),
    EFFNET_CUDA_TUNE: '0',
    EFFNET_CUDA_PROVIDER: 'own',
    FAKE_CUDA_MEMORY: String(2 ** 40),
    FAKE_CUDA_LAUNCHES: file,
    ...more,
  })
}

/** One step of training, or one batch of inference; the plan's `dump()`. */
export async function launchStep(session, { training, batchSize, imageSize }) {
  const plan = await (training
    ? session.trainPlan({ ...TRAINING, batchSize, imageSize })
    : session.evalPlan({ batchSize, imageSize }))
  const input = { bytes: new Uint8Array(plan.inputLayout.bytes) }
  if (training) await plan.step(input, { lr: 0, optimizer_step: 1 })
  else await plan.run(input)
  const rows = plan.dump()
  plan.close()
  return rows
}

/** Into `file`, of training with batches of 32 and of inference. */
export async function launchNetworks(file, tell = () => undefined, networks = NETWORKS, precisions = PRECISIONS) {
  noteLaunches(file)
  const { createModel } = await import('../../dist/index.js')
  for (const [name, imageSize] of networks)
    for (const precision of precisions) {
      const model = await createModel(name, { device: 'cuda', precision, seed: 0 })
      await launchStep(model.session, { training: true, batchSize: BATCHES.at(-1), imageSize })
      for (const batchSize of BATCHES) await launchStep(model.session, { training: false, batchSize, imageSize })
      await model.close()
      tell(`${name} ${precision}`)
    }
  delete process.env.FAKE_CUDA_LAUNCHES
}
