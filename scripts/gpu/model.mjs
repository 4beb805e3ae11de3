/**
 * Whole plans on the GPU beside the CPU backend on the same machine: training steps, gradients, predictions. A line of JSON each
 * check, the number of checks that failed last.
 */
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { ARENA } from '../../dist/binding.js'
import { createModel } from '../../dist/index.js'

const MODEL = 'tf_efficientnet_b0'
const rehearsing = process.env.EFFNET_REHEARSE === '1'
const SIZE = rehearsing ? 32 : 64
const BATCH = rehearsing ? 4 : 16
const STEPS = rehearsing ? 2 : 10
const failures = []

function check(name, value, limit) {
  const ok = value <= limit
  process.stdout.write(`${JSON.stringify({ name, value, limit, ok })}\n`)
  if (!ok) failures.push(name)
}

/** Largest difference as a share of the largest value. */
function apart(a, b) {
  let scale = 0
  let worst = 0
  for (let i = 0; i < b.length; i++) {
    scale = Math.max(scale, Math.abs(b[i]))
    const error = Math.abs(a[i] - b[i])
    worst = Number.isNaN(error) ? Infinity : Math.max(worst, error)
  }
  return worst / scale
}

const open = (device, precision) => createModel(MODEL, { pretrained: true, numClasses: 10, device, precision, seed: 1 })
const images = Uint8Array.from({ length: BATCH * SIZE * SIZE * 3 }, (_, i) => (i * 2654435761) >>> 24)
const labels = Int32Array.from({ length: BATCH }, (_, i) => i % 10)
const scalars = { lr: 0.01, momentum: 0.9, weight_decay: 1e-5, clip_norm: 1, ema_decay: 0.9, seed: 5 }
const options = {
  batchSize: BATCH,
  imageSize: SIZE,
  optimizer: { name: 'sgd' },
  labelSmoothing: 0.1,
  dropRate: 0.2,
  dropPathRate: 0.2,
  ema: true,
  clip: true,
}

/** `off`: every parameter begins off by up to this share of it. */
async function train(device, precision, { profile = false, steps = STEPS, off = 0, seed = 1 } = {}) {
  const model = await open(device, precision)
  const plan = await model.session.trainPlan(options)
  await model.session.resetEma()
  let state = seed
  const moved = (value) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return value * (1 + off * (state / 2 ** 31 - 1))
  }
  if (off) for (const { name } of model.session.slots) model.session.write(name, model.session.read(name).map(moved))
  plan.profile(profile)
  const input = plan.packInput(images, labels)
  const losses = []
  let gradient
  let norm
  for (let step = 0; step < steps; step++) {
    const result = await plan.step(input, { ...scalars, step, optimizer_step: step + 1 })
    losses.push(result.loss)
    norm ??= result.gradNorm
    gradient ??= model.session.read('blocks.3.0.conv_dw.weight', ARENA.grads)
  }
  const weights = model.session.slots.map(({ name }) => model.session.read(name))
  await model.close()
  return { losses, norm, gradient, weights }
}

const sameBits = (a, b) => (a.every((values, i) => Buffer.from(values.buffer).equals(Buffer.from(b[i].buffer))) ? 0 : 1)

const cpu = await train('cpu', 'fp32')
const fp32 = await train('cuda', 'fp32')
check('fp32: loss of the first step', Math.abs(fp32.losses[0] / cpu.losses[0] - 1), 1e-4)
check('fp32: norm of its gradients', Math.abs(fp32.norm / cpu.norm - 1), 1e-3)
check('fp32: a gradient', apart(fp32.gradient, cpu.gradient), 1e-3)
check('fp32: loss of the last step', Math.abs(fp32.losses.at(-1) / cpu.losses.at(-1) - 1), 2e-2)
const again = await train('cuda', 'fp32')
check('fp32: the same bits again', sameBits(again.weights, fp32.weights), 0)
const eager = await train('cuda', 'fp32', { profile: true })
check('fp32: a replayed graph gives the bits of launches one by one', sameBits(eager.weights, fp32.weights), 0)
// BN over few values, as the last stages of small images have, passes rounding on many times as large: what bf16 may be off by is
// what the CPU's FP32 moves when the parameters move by as much as bf16 rounds them.
const ROUNDING = 2 ** -9
const moves = { loss: 0, norm: 0 }
for (const seed of [1, 2, 3]) {
  const run = await train('cpu', 'fp32', { steps: 1, off: ROUNDING, seed })
  moves.loss = Math.max(moves.loss, Math.abs(run.losses[0] / cpu.losses[0] - 1))
  moves.norm = Math.max(moves.norm, Math.abs(run.norm / cpu.norm - 1))
}
const bf16 = await train('cuda', 'bf16-mixed')
check('bf16: loss of the first step', Math.abs(bf16.losses[0] / cpu.losses[0] - 1), Math.max(2e-2, 3 * moves.loss))
check('bf16: norm of its gradients', Math.abs(bf16.norm / cpu.norm - 1), Math.max(0.1, 3 * moves.norm))

const PHOTOS = 'models/demo/val'
const all = readdirSync(PHOTOS).flatMap((kind) => readdirSync(path.join(PHOTOS, kind)).map((f) => path.join(PHOTOS, kind, f)))
const photos = all.slice(0, rehearsing ? 1 : all.length)
const predictions = async (device, precision) => {
  const model = await createModel(MODEL, { pretrained: true, device, precision })
  const found = await model.predict(photos, { topK: 5 })
  await model.close()
  return found
}
const want = await predictions('cpu', 'fp32')
for (const [precision, limit] of [
  ['fp32', 0],
  ['bf16-mixed', 0.1],
]) {
  const got = await predictions('cuda', precision)
  const other = got.filter((p, i) => p.topk[0].index !== want[i].topk[0].index).length
  check(`${precision}: other top-1 classes of ${photos.length} photos`, other / photos.length, limit)
}
process.stdout.write(`${failures.length} checks failed${failures.length ? `: ${failures.join('; ')}` : ''}\n`)
process.exitCode = failures.length === 0 ? 0 : 1
