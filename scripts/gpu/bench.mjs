/** Images a second of the cases, wall clock, inputs from host memory: a line of JSON each, then all in one line. */
import { readFileSync } from 'node:fs'
import { createModel } from '../../dist/index.js'

const WINDOW_MS = 3000
const cases = JSON.parse(readFileSync(new URL('cases.json', import.meta.url), 'utf8'))

async function stepOf({ mode, model: name, batch, size, precision }) {
  const model = await createModel(name, { device: 'cuda', precision, seed: 0 })
  const images = Uint8Array.from({ length: batch * size * size * 3 }, (_, i) => (i * 2654435761) >>> 24)
  const labels = Int32Array.from({ length: batch }, (_, i) => i % 1000)
  if (mode === 'infer') {
    const plan = await model.session.evalPlan({ batchSize: batch, imageSize: size })
    const input = plan.packInput(images, labels)
    return { model, plan, step: () => plan.run(input) }
  }
  const options = { optimizer: { name: 'sgd' }, labelSmoothing: 0.1, dropRate: 0.2, dropPathRate: 0.2, ema: true, clip: false }
  const plan = await model.session.trainPlan({ batchSize: batch, imageSize: size, ...options })
  await model.session.resetEma()
  const input = plan.packInput(images, labels)
  let step = 0
  const scalars = { lr: 1e-3, momentum: 0.9, weight_decay: 1e-5, ema_decay: 0.999, seed: 0 }
  return { model, plan, step: () => plan.step(input, { ...scalars, step, optimizer_step: ++step }) }
}

const summary = []
for (const wanted of cases) {
  const { model, plan, step } = await stepOf(wanted)
  for (let i = 0; i < 3; i++) await step()
  const begin = performance.now()
  let steps = 0
  while (performance.now() - begin < WINDOW_MS) {
    await step()
    steps++
  }
  const seconds = (performance.now() - begin) / 1000
  plan.profile(true)
  await step()
  const slowest = plan
    .dump()
    .map(({ name, kernel, ms }) => ({ name, kernel, ms }))
    .sort((a, b) => b.ms - a.ms)
    .slice(0, 10)
  const rate = (wanted.batch * steps) / seconds
  process.stdout.write(`${JSON.stringify({ ...wanted, images_per_s: rate, ms: (1000 * seconds) / steps, slowest })}\n`)
  summary.push(`${wanted.mode} ${wanted.batch} ${wanted.precision} ${rate.toFixed(0)}/s`)
  await model.close()
}
process.stdout.write(`${summary.join(', ')}\n`)
