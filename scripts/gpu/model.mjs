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

// BN over the four values that a rehearsal leaves it has no bound: there it is seen that all of this runs.
const slack = rehearsing ? 50 : 1

function check(name, value, most) {
  const limit = most * slack
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
const scalars = { lr: 0.01, momentum: 0.9, weight_decay: 1e-5, clip_norm: 1, ema_decay: 0.9, seed: 5 }
const options = { imageSize: SIZE, optimizer: { name: 'sgd' }, labelSmoothing: 0.1, ema: true, clip: true }
const drops = { dropRate: 0.2, dropPathRate: 0.2 }
const noDrops = { dropRate: 0, dropPathRate: 0 }

/** The same few images, over and over. */
function inputOf(plan, batch) {
  const few = Uint8Array.from({ length: BATCH * SIZE * SIZE * 3 }, (_, i) => Math.imul(i + 1, 2654435761) >>> 24)
  const images = new Uint8Array(batch * SIZE * SIZE * 3)
  for (let at = 0; at < images.length; at += few.length) images.set(few, at)
  return plan.packInput(
    images,
    Int32Array.from({ length: batch }, (_, i) => (i % BATCH) % 10),
  )
}

/** `share`: every parameter begins off by up to this share of it. */
async function train(
  device,
  precision,
  { profile = false, steps = STEPS, share = 0, seed = 1, batch = BATCH, drop = drops } = {},
) {
  const model = await open(device, precision)
  const plan = await model.session.trainPlan({ ...options, ...drop, batchSize: batch })
  await model.session.resetEma()
  let state = seed
  const moved = (value) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return value * (1 + share * (state / 2 ** 31 - 1))
  }
  if (share) for (const { name } of model.session.slots) model.session.write(name, model.session.read(name).map(moved))
  plan.profile(profile)
  const input = inputOf(plan, batch)
  const losses = []
  let gradient
  let norm
  for (let step = 0; step < steps; step++) {
    const result = await plan.step(input, { ...scalars, step, optimizer_step: step + 1 })
    losses.push(result.loss)
    // A first loss scale may be too high: such a step is skipped.
    if (Number.isFinite(result.gradNorm)) norm ??= result.gradNorm
    gradient ??= model.session.read('blocks.3.0.conv_dw.weight', ARENA.grads)
  }
  const weights = model.session.slots.map(({ name }) => model.session.read(name))
  await model.close()
  return { losses, norm, gradient, weights }
}

async function logits(device, precision) {
  const model = await open(device, precision)
  const plan = await model.session.evalPlan({ batchSize: BATCH, imageSize: SIZE })
  const result = await plan.run(inputOf(plan, BATCH))
  await model.close()
  return result.logits
}

const sameBits = (a, b) => (a.every((values, i) => Buffer.from(values.buffer).equals(Buffer.from(b[i].buffer))) ? 0 : 1)
const off = (a, b) => Math.abs(a / b - 1)

const cpu = await train('cpu', 'fp32')
const cpuLogits = await logits('cpu', 'fp32')
const fp32 = await train('cuda', 'fp32')
check('fp32: logits', apart(await logits('cuda', 'fp32'), cpuLogits), 1e-4)
check('fp32: loss of the first step', off(fp32.losses[0], cpu.losses[0]), 1e-4)
check('fp32: norm of its gradients', off(fp32.norm, cpu.norm), 1e-3)
check('fp32: a gradient', apart(fp32.gradient, cpu.gradient), 1e-3)
check('fp32: loss of the last step', off(fp32.losses.at(-1), cpu.losses.at(-1)), 2e-2)
// BN over few values, as the last stages of small images have, passes rounding on many times as large: what a precision may be off by
// is what the CPU's FP32 moves when the parameters move by as much as that precision rounds them, or these where that is less.
for (const [precision, rounding, least] of [
  ['tf32', 2 ** -11, { loss: 5e-3, norm: 0.03 }],
  ['bf16-mixed', 2 ** -9, { loss: 2e-2, norm: 0.1 }],
  ['fp16-mixed', 2 ** -12, { loss: 5e-3, norm: 0.03 }],
]) {
  const moves = { ...least }
  for (const seed of [1, 2, 3]) {
    const run = await train('cpu', 'fp32', { steps: 1, share: rounding, seed })
    moves.loss = Math.max(moves.loss, 3 * off(run.losses[0], cpu.losses[0]))
    moves.norm = Math.max(moves.norm, 3 * off(run.norm, cpu.norm))
  }
  const run = await train('cuda', precision)
  check(`${precision}: loss of the first step`, off(run.losses[0], cpu.losses[0]), moves.loss)
  check(`${precision}: norm of its gradients`, off(run.norm, cpu.norm), moves.norm)
  check(`${precision}: steps without a loss`, run.losses.filter((loss) => !Number.isFinite(loss)).length, 0)
}
for (const precision of ['fp32', 'bf16-mixed']) {
  const first = precision === 'fp32' ? fp32 : await train('cuda', precision)
  const again = await train('cuda', precision)
  check(`${precision}: the same bits again`, sameBits(again.weights, first.weights), 0)
  const eager = await train('cuda', precision, { profile: true })
  check(`${precision}: a replayed graph gives the bits of launches one by one`, sameBits(eager.weights, first.weights), 0)
}
// Kernels take other forms where there are more pixels; images that come again change neither the loss nor a statistic of BN.
if (!rehearsing)
  for (const [precision, limit] of [
    ['fp32', 1e-3],
    ['bf16-mixed', 0.05],
  ]) {
    const few = await train('cuda', precision, { steps: 1, drop: noDrops })
    const many = await train('cuda', precision, { steps: 1, drop: noDrops, batch: 16 * BATCH })
    check(`${precision}: loss of 256 images, 16 times 16`, off(many.losses[0], few.losses[0]), limit)
    check(`${precision}: norm of their gradients`, off(many.norm, few.norm), limit)
  }

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
