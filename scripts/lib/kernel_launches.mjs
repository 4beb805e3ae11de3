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
const TRAINING = {
  optimizer: { name: 'rmsprop_tf' },
  labelSmoothing: 0.1,
  dropRate: 0.2,
  dropPathRate: 0.2,
  ema: true,
  clip: true,
}

/** Into `file`, of training with batches of 32 and of inference, with own kernels only. */
export async function launchNetworks(file, tell = () => undefined, networks = NETWORKS, precisions = PRECISIONS) {
  Object.assign(process.env, {
    EFFNET_LIB_DIR: path.join(root, 'build/fake_cuda'),
    EFFNET_CUDA_TUNE: '0',
    EFFNET_CUDA_PROVIDER: 'own',
    FAKE_CUDA_MEMORY: String(2 ** 40),
    FAKE_CUDA_LAUNCHES: file,
  })
  const { createModel } = await import('../../dist/index.js')
  for (const [name, imageSize] of networks)
    for (const precision of precisions) {
      const model = await createModel(name, { device: 'cuda', precision, seed: 0 })
      const { session } = model
      const batchSize = BATCHES.at(-1)
      const plan = await session.trainPlan({ ...TRAINING, batchSize, imageSize })
      await plan.step({ bytes: new Uint8Array(plan.inputLayout.bytes) }, { lr: 0, optimizer_step: 1 })
      plan.close()
      for (const batch of BATCHES) {
        const evaluation = await session.evalPlan({ batchSize: batch, imageSize })
        await evaluation.run({ bytes: new Uint8Array(evaluation.inputLayout.bytes) })
        evaluation.close()
      }
      await model.close()
      tell(`${name} ${precision}`)
    }
  delete process.env.FAKE_CUDA_LAUNCHES
}
