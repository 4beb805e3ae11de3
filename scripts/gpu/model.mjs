/**
 * Whole plans on the GPU: training steps, gradients and predictions beside the CPU backend, in every precision. A line of JSON each
 * check, the number of checks that failed last.
 *
 * What a precision may be off by is 3 times what the CPU's FP32 moves, at most, when its parameters are off by what the precision rounds
 * (moves.mjs): every stored tensor is rounded, not the parameters alone, and BN over few values passes rounding on many times as large.
 */
import { readFileSync } from 'node:fs'
import { ARENA } from '../../dist/binding.js'
import { createModel } from '../../dist/index.js'
import { apart, move, ROUNDING } from './moves.mjs'
import { logitsOf } from './photos.mjs'

const MODEL = 'tf_efficientnet_b0'
const PRECISIONS = Object.keys(ROUNDING)
const rehearsing = process.env.EFFNET_REHEARSE === '1'
const SIZE = rehearsing ? 32 : 64
const BATCH = rehearsing ? 4 : 16
const STEPS = rehearsing ? 2 : 10
const MOVES = 3
const failures = []

// BN over the four values that a rehearsal leaves it has no bound: there it is seen that all of this runs.
const slack = rehearsing ? 50 : 1

function check(name, value, most) {
  const limit = most * slack
  const ok = value <= limit
  process.stdout.write(`${JSON.stringify({ name, value, limit, ok })}\n`)
  if (!ok) failures.push(name)
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

/** A model of its own each time: the GPU's context goes with the last and comes again. `share`: every tensor begins off by up to it. */
async function train(
  device,
  precision,
  { profile = false, steps = STEPS, share = 0, seed = 1, batch = BATCH, drop = drops } = {},
) {
  const model = await open(device, precision)
  const { session } = model
  const plan = await session.trainPlan({ ...options, ...drop, batchSize: batch })
  await session.resetEma()
  if (share) move(session, share, seed)
  // One that the first step does not find too high, since a step left out has other drops than the CPU's.
  if (precision === 'fp16-mixed') session.lossScale = { scale: 2 ** 10, growth: 0, skipped: 0 }
  plan.profile(profile)
  const input = inputOf(plan, batch)
  const losses = []
  let gradients
  let norm
  for (let step = 0; step < steps; step++) {
    const { scale } = session.lossScale
    const result = await plan.step(input, { ...scalars, step, optimizer_step: step + 1 })
    losses.push(result.loss)
    norm ??= result.gradNorm
    gradients ??= gradientsOf(session).map((values) => values.map((v) => v / scale))
  }
  const weights = session.slots.map(({ name }) => session.read(name))
  await model.close()
  return { losses, norm, gradients, weights }
}
const parametersOf = (session) => session.slots.filter(({ role }) => role === 'parameter')
const gradientsOf = (session) => parametersOf(session).map(({ name }) => session.read(name, ARENA.grads))

/** Lengths of differences, a gradient each, as shares of its length: but no gradient counts as shorter than a share of the longest. */
function apartEach(gradients, of) {
  const zero = of.map((values) => new Float32Array(values.length))
  const lengths = of.map((values, i) => apart(values, zero[i]))
  const least = 1e-3 * Math.max(...lengths)
  return gradients.map((values, i) => (apart(values, of[i]) * (lengths[i] || 1)) / Math.max(lengths[i], least))
}

const sameBits = (a, b) => (a.every((values, i) => Buffer.from(values.buffer).equals(Buffer.from(b[i].buffer))) ? 0 : 1)
const off = (a, b) => Math.abs(a / b - 1)

const cpu = await train('cpu', 'fp32')
/** What each result of the first step moves at most. */
async function movesOf(precision) {
  const moves = { loss: 0, norm: 0, gradients: cpu.gradients.map(() => 0) }
  for (const seed of [1, 2, 3]) {
    const run = await train('cpu', 'fp32', { steps: 1, share: ROUNDING[precision], seed })
    moves.loss = Math.max(moves.loss, off(run.losses[0], cpu.losses[0]))
    moves.norm = Math.max(moves.norm, off(run.norm, cpu.norm))
    const each = apartEach(run.gradients, cpu.gradients)
    moves.gradients = moves.gradients.map((move, i) => Math.max(move, each[i]))
  }
  // Three draws may miss what a number or a short gradient moves: none is held to less than the middle one of all gradients.
  const middle = [...moves.gradients].sort((a, b) => a - b)[moves.gradients.length >> 1]
  moves.gradients = moves.gradients.map((move) => Math.max(move, middle))
  moves.norm = Math.max(moves.norm, middle / 3)
  moves.loss = Math.max(moves.loss, ROUNDING[precision])
  return moves
}

const names = await open('cpu', 'fp32').then(async (model) => {
  const all = parametersOf(model.session).map(({ name }) => name)
  await model.close()
  return all
})
for (const precision of PRECISIONS) {
  const moves = await movesOf(precision)
  const run = await train('cuda', precision)
  check(`${precision}: loss of the first step`, off(run.losses[0], cpu.losses[0]), MOVES * moves.loss)
  check(`${precision}: norm of its gradients`, off(run.norm, cpu.norm), MOVES * moves.norm)
  const each = apartEach(run.gradients, cpu.gradients).map((value, i) => value / moves.gradients[i])
  const worst = each.reduce((a, value, i) => (value <= each[a] ? a : i), 0)
  check(`${precision}: ${names.length} gradients, in moves, most ${names[worst]}`, each[worst], MOVES)
  check(`${precision}: steps without a loss`, run.losses.filter((loss) => !Number.isFinite(loss)).length, 0)
  if (precision === 'fp32') check('fp32: loss of the last step', off(run.losses.at(-1), cpu.losses.at(-1)), 2e-2)
  const again = await train('cuda', precision)
  check(`${precision}: the same bits from a model opened anew`, sameBits(again.weights, run.weights), 0)
  const eager = await train('cuda', precision, { profile: true })
  check(`${precision}: a replayed graph gives the bits of launches one by one`, sameBits(eager.weights, run.weights), 0)
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

const { moves, recorded } = JSON.parse(readFileSync('photos.json', 'utf8'))
const asked = rehearsing ? recorded.slice(0, 1) : recorded
const exact = { fp32: 0, tf32: 0.1, 'bf16-mixed': 0.1, 'fp16-mixed': 0.1 }
for (const precision of PRECISIONS) {
  const found = await logitsOf(
    asked.map(({ photo }) => photo),
    { device: 'cuda', precision },
  )
  const share = (differs) => found.filter((_, i) => differs(found[i].topk, asked[i].top)).length / asked.length
  const worst = Math.max(...found.map(({ logits }, i) => apart(logits, asked[i].logits)))
  check(`${precision}: logits of ${asked.length} photos beside those recorded`, worst, MOVES * moves[precision])
  check(
    `${precision}: photos with another top-1 class`,
    share((topk, top) => topk[0].index !== top[0]),
    exact[precision],
  )
  check(
    `${precision}: photos whose top-1 class is not among the recorded top 5`,
    share((topk, top) => !top.includes(topk[0].index)),
    0,
  )
  const others = found.flatMap(({ topk }, i) => topk.filter(({ index }) => !asked[i].top.includes(index))).length
  check(`${precision}: other classes among their top 5`, others / (5 * asked.length), exact[precision])
}
process.stdout.write(`${failures.length} checks failed${failures.length ? `: ${failures.join('; ')}` : ''}\n`)
process.exitCode = failures.length === 0 ? 0 : 1
