/**
 * What bench.mjs times, torch_peer.py too: those of cases.json whose mode EFFNET_BENCH_MODE names, by default all; with EFFNET_REHEARSE=1
 * the first of each mode on two small images.
 */
import { readFileSync } from 'node:fs'
import { createModel } from '../../dist/index.js'
import { repeated } from '../../dist/runtime/repeat.js'

export const rehearsing = process.env.EFFNET_REHEARSE === '1'
const all = JSON.parse(readFileSync(new URL('cases.json', import.meta.url), 'utf8'))
const kinds = process.env.EFFNET_BENCH_MODE?.split(',') ?? ['train', 'infer']
const asked = all.filter(({ mode }) => kinds.includes(mode))
const rehearsed = kinds.map((kind) => asked.find(({ mode }) => mode === kind))
export const cases = rehearsing ? rehearsed.map((each) => ({ ...each, batch: Math.min(each.batch, 2), size: 32 })) : asked

/**
 * The model on the GPU and a function that makes one step on made-up images: of a batch of one with its way to the GPU, of others with
 * that of the next beside it.
 */
export async function open({ mode, model: name, batch, size, precision }) {
  const model = await createModel(name, { device: 'cuda', precision, seed: 0 })
  // A loop: Uint8Array.from takes 100 ns an element, of 150 million.
  const images = new Uint8Array(batch * size * size * 3)
  for (let i = 0; i < images.length; i++) images[i] = Math.imul(i, 2654435761) >>> 24
  const labels = Int32Array.from({ length: batch }, (_, i) => i % 1000)
  const inputOf = (plan) => plan.packInput(images, labels, model.session.inputMemory(plan.inputLayout.bytes))
  if (mode === 'infer') {
    const plan = await model.session.evalPlan({ batchSize: batch, imageSize: size })
    const input = inputOf(plan)
    const run = () => plan.run(input)
    return { model, plan, step: batch > 1 ? repeated(plan, input, run) : run }
  }
  const options = { optimizer: { name: 'sgd' }, labelSmoothing: 0.1, dropRate: 0.2, dropPathRate: 0.2, ema: true, clip: false }
  const plan = await model.session.trainPlan({ batchSize: batch, imageSize: size, ...options })
  await model.session.resetEma()
  const input = inputOf(plan)
  let step = 0
  // On two images of 32 pixels the statistics are of two values and the gradients of a deep network have no bound.
  const scalars = { lr: rehearsing ? 0 : 1e-3, momentum: 0.9, weight_decay: 1e-5, ema_decay: 0.999, seed: 0 }
  return { model, plan, step: repeated(plan, input, () => plan.step(input, { ...scalars, step, optimizer_step: ++step })) }
}
