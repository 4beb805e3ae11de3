/**
 * What a step of a model launches, bound on the stand-in of NVIDIA's driver (native/cuda/fake) and captured, but not run.
 *
 *   node native/lab/cuda_launches.mjs MODEL BATCH SIZE train|infer   (cuda_step.mjs calls it, with the stand-in's variables)
 */
import { createModel } from '../../dist/index.js'

const [name, batch, size, kind] = process.argv.slice(2)
const model = await createModel(name, { device: 'cuda', precision: 'bf16-mixed', seed: 0 })
const options = { batchSize: Number(batch), imageSize: Number(size) }
const training = {
  optimizer: { name: 'rmsprop_tf' },
  labelSmoothing: 0.1,
  dropRate: 0.2,
  dropPathRate: 0.2,
  ema: true,
  clip: true,
}
const plan = await (kind === 'train' ? model.session.trainPlan({ ...training, ...options }) : model.session.evalPlan(options))
process.stdout.write(JSON.stringify(plan.dump().map(({ name, kernel, bytes, life }) => ({ name, kernel, bytes, life }))))
const images = new Uint8Array(options.batchSize * options.imageSize ** 2 * 3)
try {
  if (kind === 'train') await plan.step(plan.packInput(images, new Int32Array(options.batchSize)), { lr: 0.1, seed: 0, step: 0 })
  else await plan.run(plan.packInput(images))
} catch (error) {
  // The stand-in refuses the step's graph where it would be run.
  if (!String(error.message).includes('cuGraphInstantiate')) throw error
}
