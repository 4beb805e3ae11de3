/** An update from several batches beside one large batch. BN with frozen scales: its statistics are those of the model in both. */
import { afterAll, describe, expect, it } from 'vitest'
import { createModel } from '../../ts/index.js'

const SIZE = 32
const pixels = SIZE * SIZE * 3
const images = Uint8Array.from({ length: 6 * pixels }, (_, i) => (i * 7919 + ((i * i) % 97)) % 251)
const labels = [0, 1, 2, 3, 4, 2]
const model = await createModel('tf_efficientnet_b0', { pretrained: true, numClasses: 5, seed: 2, threads: 2 })
afterAll(() => model.close())

/** The weights after one update from batches of `batchSize`. */
async function updated(batchSize: number, order: number[]): Promise<{ head: Float32Array; gradNorm: number }> {
  const { session } = model
  const before = new Map(session.slots.map((slot) => [slot.name, session.read(slot.name)]))
  const plan = await session.trainPlan({
    batchSize,
    imageSize: SIZE,
    optimizer: { name: 'sgd' },
    labelSmoothing: 0.1,
    dropRate: 0,
    dropPathRate: 0,
    ema: false,
    clip: true,
    accumulates: batchSize < 6,
    frozen: (name) => /bn\d/.test(name),
  })
  await session.resetOptimizer()
  const parts = 6 / batchSize
  let gradNorm = 0
  for (let part = 0; part < parts; part++) {
    const mine = order.slice(part * batchSize, (part + 1) * batchSize)
    const input = plan.packInput(
      Uint8Array.from(mine.flatMap((i) => [...images.subarray(i * pixels, (i + 1) * pixels)])),
      mine.map((i) => labels[i]!),
    )
    const step = await plan.step(input, { lr: 0.1, momentum: 0.9, part, parts })
    gradNorm = step.gradNorm!
    const untouched = session.read('conv_head.weight')
    if (part + 1 < parts) expect(untouched).toEqual(before.get('conv_head.weight'))
  }
  const head = session.read('conv_head.weight')
  for (const [name, values] of before) session.write(name, values)
  plan.close()
  return { head, gradNorm }
}

describe('an update from several batches', () => {
  it('is that of the large batch', async () => {
    const start = model.session.read('conv_head.weight')
    const whole = await updated(6, [0, 1, 2, 3, 4, 5])
    const moved = whole.head.reduce((most, x, i) => Math.max(most, Math.abs(x - start[i]!)), 0)
    expect(moved).toBeGreaterThan(0)
    for (const size of [2, 3]) {
      const parts = await updated(size, [0, 1, 2, 3, 4, 5])
      const apart = parts.head.reduce((most, x, i) => Math.max(most, Math.abs(x - whole.head[i]!)), 0)
      expect(apart / moved, `batches of ${size}`).toBeLessThan(1e-3)
      expect(parts.gradNorm / whole.gradNorm).toBeCloseTo(1, 4)
    }
  }, 300_000)
})
