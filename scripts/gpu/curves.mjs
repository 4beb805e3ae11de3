/**
 * Loss curves of 500 steps on the photos of models/demo in each 16-bit precision beside FP32 on the same GPU, with the same batches:
 * how fast kernels are counts only where they train the same. A line of JSON each run: mean losses of every ten steps.
 *
 * What a curve may be off by is what FP32's moves when its parameters begin off by what bf16 rounds (shareOfLimit of moves.mjs).
 * EFFNET_CURVES_DEVICE, EFFNET_CURVES_STEPS: others, for a look at the method itself.
 */
import { createModel, imageFolder, Trainer } from '../../dist/index.js'
import { move, partsOf, ROUNDING, shareOfLimit } from './moves.mjs'

const rehearsing = process.env.EFFNET_REHEARSE === '1'
const device = process.env.EFFNET_CURVES_DEVICE ?? 'cuda'
const STEPS = rehearsing ? 2 : Number(process.env.EFFNET_CURVES_STEPS ?? 500)
const OF_A_PART = 10
const MOVES = 3
const SEEDS = rehearsing ? [1] : [1, 2, 3]
const work = rehearsing ? { imageSize: 32, batchSize: 2 } : { imageSize: 64, batchSize: 32 }

const { train } = await imageFolder('models/demo')

/** Parts of one. `share`: its parameters begin off by up to it. */
async function curve(precision, share = 0, seed = 1) {
  const model = await createModel('tf_efficientnet_b0', {
    pretrained: true,
    numClasses: train.classes.length,
    device,
    precision,
    seed: 1,
  })
  if (share) move(model.session, share, seed)
  const losses = []
  const watch = { name: 'losses', onStepEnd: (_, { loss }) => void losses.push(loss) }
  const options = { lr: 1e-3, maxSteps: STEPS, maxEpochs: STEPS, seed: 1, ema: false, callbacks: [watch] }
  // A scale that the first steps do not find too high: a step left out has other weights than FP32's ever after.
  const scaled = precision === 'fp16-mixed' ? { lossScale: { initial: 2 ** 10 } } : {}
  await new Trainer({ model, ...work, ...options, ...scaled }).fit({ train })
  await model.close()
  const parts = partsOf(losses, OF_A_PART)
  process.stdout.write(`${JSON.stringify({ precision, share, seed, steps: losses.length, parts })}\n`)
  return parts
}

const reference = await curve('fp32')
// FP16 rounds less, but at every step and not at the first alone, and is off a little later.
const rounding = ROUNDING['bf16-mixed']
const draws = []
for (const seed of SEEDS) draws.push(await curve('fp32', rounding, seed))
const said = []
let failed = 0
for (const precision of device === 'cpu' ? ['bf16-mixed'] : ['bf16-mixed', 'fp16-mixed']) {
  const share = shareOfLimit(await curve(precision), draws, reference, { rounding, most: MOVES })
  // On two images of 32 pixels nothing has a bound.
  const ok = rehearsing ? Number.isFinite(share) : share <= 1
  if (!ok) failed++
  said.push(`${precision} at ${(100 * share).toFixed(0)} % of its limit${ok ? '' : ' FAILED'}`)
}
process.stdout.write(
  `losses of ${STEPS} steps, ${reference[0].toFixed(3)} to ${reference.at(-1).toFixed(3)} in fp32: ${said.join('; ')}\n`,
)
process.exitCode = failed === 0 ? 0 : 1
