import { afterEach, describe, expect, it } from 'vitest'
import { ARENA, binding } from '../../ts/binding.js'
import { interpret } from '../../ts/graph/interpreter.js'
import { getModelConfig } from '../../ts/nn/index.js'
import type { OptimizerSpec } from '../../ts/passes/index.js'
import { evalProgram, OUTPUTS, trainProgram } from '../../ts/runtime/programs.js'
import type { StepScalars } from '../../ts/runtime/scalars.js'
import type { Session, TrainPlanOptions } from '../../ts/runtime/session.js'
import { goldenWeights } from '../helpers/golden.js'
import { allWeights, goldenSession, hashLabels, hashPixels, relativeError } from './harness.js'

const BATCH = 3
const SIZE = 48
const CLASSES = 13

const config = (name: string) => getModelConfig(name, { numClasses: CLASSES })
const open: Session[] = []
const session = async (...args: Parameters<typeof goldenSession>): Promise<Session> => {
  const s = await goldenSession(...args)
  open.push(s)
  return s
}
afterEach(() => {
  for (const s of open.splice(0)) s.close()
})

const images = (step: number, batch = BATCH, size = SIZE) => hashPixels(200000 + step, batch * size * size * 3)
const labels = (step: number, batch = BATCH) => hashLabels(300000 + step, batch, CLASSES)
const bf16 = binding().cpuInfo().avx512Bf16

const SCALARS: Partial<StepScalars> = {
  lr: 0.01,
  seed: 5,
  weight_decay: 0.01,
  momentum: 0.9,
  alpha: 0.999,
  eps: 1e-3,
  clip_norm: 1,
  ema_decay: 0.9,
}

const trainOptions = (optimizer: OptimizerSpec['name'], more: Partial<TrainPlanOptions> = {}): TrainPlanOptions => ({
  batchSize: BATCH,
  imageSize: SIZE,
  optimizer: { name: optimizer },
  labelSmoothing: 0.1,
  dropRate: 0.2,
  dropPathRate: 0.3,
  clip: true,
  ema: true,
  ...more,
})

describe('evaluation against the float64 interpreter', () => {
  it.each([
    ['efficientnet_b0'],
    ['tf_efficientnet_b0'],
    ['efficientnet_widese_b0'],
    ['tf_efficientnetv2_b0'],
    ['efficientnetv2_s'],
    ['tf_efficientnet_lite0'],
  ])('%s in fp32', async (name) => {
    const s = await session(config(name))
    const plan = await s.evalPlan({ batchSize: BATCH, imageSize: SIZE })
    const result = await plan.run(plan.packInput(images(0), labels(0)))
    // The unfused graph: the oracle shares no pass with the plan.
    const twin = evalProgram(s.config, {
      batchSize: BATCH,
      imageSize: SIZE,
      dtype: 'f32',
      target: { device: 'cpu' },
      fuse: false,
    })
    const want = interpret(twin.graph, {
      values: new Map([
        ...goldenWeights(s.config),
        ['images', Float64Array.from(images(0))],
        ['labels', Float64Array.from(labels(0))],
      ]),
    })
    expect(relativeError(result.logits, want.get(twin.logits)!)).toBeLessThan(1e-5)
    expect(relativeError(result.features, want.get(twin.features)!)).toBeLessThan(1e-5)
    expect(result.loss).toBeCloseTo(want.get(OUTPUTS.loss)![0]!, 4)
    expect([...result.ranks]).toEqual([...want.get(OUTPUTS.rank)!])
  })

  it.skipIf(!bf16)('efficientnet_b0 in bf16 (AVX512_BF16)', async () => {
    const s = await session(config('efficientnet_b0'), 'bf16-mixed')
    const plan = await s.evalPlan({ batchSize: BATCH, imageSize: SIZE })
    const result = await plan.run(plan.packInput(images(0)))
    const twin = evalProgram(s.config, {
      batchSize: BATCH,
      imageSize: SIZE,
      dtype: 'f32',
      target: { device: 'cpu' },
      fuse: false,
    })
    const want = interpret(twin.graph, {
      values: new Map([
        ...goldenWeights(s.config),
        ['images', Float64Array.from(images(0))],
        ['labels', new Float64Array(BATCH).fill(-1)],
      ]),
    })
    expect(relativeError(result.logits, want.get(twin.logits)!)).toBeLessThan(2.5e-2)
    expect([...result.ranks]).toEqual([-1, -1, -1])
  })

  it('an input that begins at any byte of a buffer is read in place or copied, with the same result', async () => {
    const s = await session(config('efficientnet_b0'))
    const plan = await s.evalPlan({ batchSize: BATCH, imageSize: SIZE })
    const { bytes } = plan.packInput(images(0), labels(0))
    const whole = await plan.run({ bytes: bytes! })
    for (const start of [1, 4, 16]) {
      const view = new Uint8Array(bytes!.length + 64).subarray(start, start + bytes!.length)
      view.set(bytes!)
      expect((await plan.run({ bytes: view })).logits).toEqual(whole.logits)
    }
    plan.close()
  })

  it('an image gives the same logits whatever stands beside it', async () => {
    const s = await session(config('efficientnet_b0'))
    const many = await s.evalPlan({ batchSize: 4, imageSize: SIZE })
    const one = await s.evalPlan({ batchSize: 1, imageSize: SIZE })
    const pixels = images(1, 4)
    const together = await many.run(many.packInput(pixels))
    const bytes = SIZE * SIZE * 3
    for (let i = 0; i < 4; i++) {
      const alone = await one.run(one.packInput(pixels.slice(i * bytes, (i + 1) * bytes)))
      expect(relativeError(alone.logits, together.logits.slice(i * CLASSES, (i + 1) * CLASSES))).toBeLessThan(2e-6)
    }
  })
})

/** 1 - the cosine of the angle between two vectors in pieces. */
function turn(a: readonly ArrayLike<number>[], b: readonly ArrayLike<number>[]): number {
  let [dot, aa, bb] = [0, 0, 0]
  a.forEach((piece, k) => {
    for (let i = 0; i < piece.length; i++) {
      dot += piece[i]! * b[k]![i]!
      aa += piece[i]! ** 2
      bb += b[k]![i]! ** 2
    }
  })
  return 1 - dot / Math.sqrt(aa * bb)
}

describe('a training step against the float64 interpreter', () => {
  it.each([
    ['efficientnet_b0', 'adamw'],
    ['tf_efficientnet_b0', 'sgd'],
    ['tf_efficientnetv2_b0', 'rmsprop_tf'],
    ['efficientnet_lite0', 'rmsprop'],
  ] as const)('%s with %s', async (name, optimizer) => {
    const s = await session(config(name))
    const plan = await s.trainPlan(trainOptions(optimizer))
    await s.resetEma()
    const before = allWeights(s)
    const result = await plan.step(plan.packInput(images(0), labels(0)), { ...SCALARS, step: 7 })
    const twin = trainProgram(s.config, {
      ...trainOptions(optimizer),
      gradNorm: true,
      dtype: 'f32',
      target: { device: 'cpu' },
      fuse: false,
    })
    /** `moved` is added to every shift of a batch norm. */
    const reference = (moved = 0) =>
      interpret(twin, {
        values: new Map([
          ...[...goldenWeights(s.config)].map(([n, v]) => [n, /bn\d?\.bias$/.test(n) ? v.map((x) => x + moved) : v] as const),
          ['images', Float64Array.from(images(0))],
          ['labels', Float64Array.from(labels(0))],
        ]),
        scalars: { ...SCALARS, step: 7 },
        keep: (t) => t.role !== 'activation' || t.name === OUTPUTS.gradNorm,
      })
    const want = reference()
    expect(result.loss).toBeCloseTo(want.get(OUTPUTS.loss)![0]!, 4)
    // Of a million values some lie so near a kink of ReLU6 that rounding decides on which side. One that falls the other way
    // was seen to change single elements by 3 % of their tensor's largest, and the norm by 1e-4; never the direction of all.
    const kinks = name === 'efficientnet_lite0'
    const allowed = kinks ? 0.05 : 1e-3
    expect(result.gradNorm! / want.get(OUTPUTS.gradNorm)![0]!).toBeCloseTo(1, kinks ? 3 : 4)
    const gradients = new Map(twin.tensors.filter((t) => t.of).map((t) => [t.of!.name, want.get(t.name)!]))
    // A shift that only reaches another batch norm has no gradient but rounding noise; elements below this are noise too.
    const noise = 1e-6 * Math.max(...[...gradients.values()].map((g) => g.reduce((m, v) => Math.max(m, Math.abs(v)), 0)))
    const mine: Float32Array[] = []
    for (const slot of s.slots) {
      const grad = gradients.get(slot.name)
      const [start, reached] = [before.get(slot.name)!, want.get(slot.name)!]
      if (!grad) {
        expect(relativeError(s.read(slot.name), reached), slot.name).toBeLessThan(3e-5)
        continue
      }
      const got = s.read(slot.name, ARENA.grads)
      const size = grad.reduce((m, v) => Math.max(m, Math.abs(v)), 0)
      mine.push(got)
      grad.forEach((g, i) => {
        if (Math.abs(got[i]! - g) > allowed * size + noise) expect(got[i], `gradient of ${slot.name} [${i}]`).toBeCloseTo(g, 9)
      })
      const after = s.read(slot.name)
      const largest = reached.reduce((m, v, i) => Math.max(m, Math.abs(v - start[i]!)), 0)
      grad.forEach((g, i) => {
        // An error of `allowed` of the tensor's largest gradient is allowed above: small elements may be off by much of themselves.
        if (Math.abs(g) < Math.max(kinks ? size : 0.1 * size, 100 * noise)) return
        const [moved, wanted] = [after[i]! - start[i]!, reached[i]! - start[i]!]
        // The weight itself is rounded to FP32.
        const error = Math.abs(moved - wanted) - 2 ** -23 * Math.abs(start[i]!)
        if (error > 0.02 * largest) expect(moved, `update of ${slot.name} [${i}]`).toBeCloseTo(wanted, 9)
      })
    }
    // Smooth models were seen at 7e-10. With kinks: less than the true gradient itself turns when the shifts move by what FP32
    // may lose on the way (seen: 2e-6 of 3e-5 and 2e-3).
    const trained = s.slots.flatMap((slot) => twin.tensors.find((t) => t.of?.name === slot.name) ?? [])
    const gradientOf = (values: ReturnType<typeof reference>) => trained.map((t) => values.get(t.name)!)
    const turned = kinks ? [1e-6, -1e-6].map((moved) => turn(gradientOf(reference(moved)), gradientOf(want))) : []
    expect(turn(mine, gradientOf(want))).toBeLessThan(kinks ? Math.min(...turned, 1e-5) : 1e-8)
  })

  it.skipIf(!bf16)('bf16-mixed follows the interpreter that rounds where tensors are stored (AVX512_BF16)', async () => {
    // One rounding that falls the other way shifts batch statistics: directions agree, digits do not. The fewer values a
    // statistic is of, the less; measured cosines: 0.972 at batch 3 and 48 px, 0.992 at batch 6 and 64 px.
    const [batch, size] = [6, 64]
    const s = await session(config('efficientnet_b0'), 'bf16-mixed')
    const options = trainOptions('sgd', { batchSize: batch, imageSize: size, ema: false, dropRate: 0, dropPathRate: 0 })
    const plan = await s.trainPlan(options)
    const result = await plan.step(plan.packInput(images(0, batch, size), labels(0, batch)), SCALARS)
    const twin = trainProgram(s.config, { ...options, gradNorm: true, dtype: 'bf16', target: { device: 'cpu' } })
    const rounded = interpret(twin, {
      values: new Map([
        ...goldenWeights(s.config),
        ['images', Float64Array.from(images(0, batch, size))],
        ['labels', Float64Array.from(labels(0, batch))],
      ]),
      scalars: SCALARS,
      storage: 'as-typed',
      keep: (t) => t.role !== 'activation',
    })
    // bf16 itself moves this loss by 0.012: the interpreter with rounding against without.
    expect(Math.abs(result.loss - rounded.get(OUTPUTS.loss)![0]!)).toBeLessThan(0.03)
    let [dot, a, b] = [0, 0, 0]
    for (const t of twin.tensors) {
      if (!t.of) continue
      const ours = s.read(t.of.name, ARENA.grads)
      rounded.get(t.name)!.forEach((v, i) => {
        dot += v * ours[i]!
        a += ours[i]! ** 2
        b += v ** 2
      })
    }
    expect(dot / Math.sqrt(a * b)).toBeGreaterThan(0.98)
    expect(a / b).toBeGreaterThan(0.95)
    expect(a / b).toBeLessThan(1.05)
  })
})

describe('determinism', () => {
  const train = async (threads: number, more: Partial<TrainPlanOptions> = {}, precision: 'fp32' | 'bf16-mixed' = 'fp32') => {
    const s = await session(config('efficientnet_b0'), precision, threads)
    const plan = await s.trainPlan(trainOptions('adamw', more))
    await s.resetEma()
    for (let step = 0; step < 3; step++) {
      await plan.step(plan.packInput(images(step), labels(step)), { ...SCALARS, step, optimizer_step: step + 1 })
    }
    return allWeights(s)
  }
  const same = (a: Map<string, Float32Array>, b: Map<string, Float32Array>): string[] =>
    [...a]
      .filter(([name, values]) => Buffer.compare(Buffer.from(values.buffer), Buffer.from(b.get(name)!.buffer)) !== 0)
      .map(([n]) => n)

  it('1, 2 and 3 threads, twice, recomputed or saved: the same bits', async () => {
    const reference = await train(1)
    expect(same(await train(1), reference)).toEqual([])
    expect(same(await train(2), reference)).toEqual([])
    expect(same(await train(3), reference)).toEqual([])
    expect(same(await train(2, { recompute: 'cheap' }), reference)).toEqual([])
  })

  it.skipIf(!bf16)('also in bf16 (AVX512_BF16)', async () => {
    expect(same(await train(2, {}, 'bf16-mixed'), await train(1, {}, 'bf16-mixed'))).toEqual([])
  })

  it('two models train side by side as they do alone', async () => {
    const alone = await train(2)
    const [a, b] = await Promise.all([train(2), train(2)])
    expect(same(a, alone)).toEqual([])
    expect(same(b, alone)).toEqual([])
  })
})

describe('steps queued without waiting', () => {
  it('an evaluation behind a training step sees its weights', async () => {
    const s = await session(config('efficientnet_b0'))
    const [train, evaluate] = await Promise.all([
      s.trainPlan(trainOptions('sgd', { ema: false })),
      s.evalPlan({ batchSize: BATCH, imageSize: SIZE }),
    ])
    const before = await evaluate.run(evaluate.packInput(images(0)))
    const [, queued] = await Promise.all([
      train.step(train.packInput(images(0), labels(0)), SCALARS),
      evaluate.run(evaluate.packInput(images(0))),
    ])
    const later = await evaluate.run(evaluate.packInput(images(0)))
    expect(queued.logits).toEqual(later.logits)
    expect(queued.logits).not.toEqual(before.logits)
  })
})

describe('frozen parameters', () => {
  it('keep their values, their BN its statistics, and cost no gradient', async () => {
    const s = await session(config('efficientnet_b0'))
    const frozen = (name: string): boolean => !name.startsWith('classifier')
    const plan = await s.trainPlan(trainOptions('sgd', { frozen, ema: false }))
    const before = allWeights(s)
    await plan.step(plan.packInput(images(0), labels(0)), SCALARS)
    const after = allWeights(s)
    const changed = [...after].filter(([n, v]) => v.some((x, i) => x !== before.get(n)![i])).map(([n]) => n)
    expect(changed.sort()).toEqual(['classifier.bias', 'classifier.weight'])
    expect(plan.dump().some((row) => row.op === 'conv2d_bwd_weights')).toBe(false)
  })
})

describe('dump', () => {
  it('names a kernel for every op and never a reference implementation', async () => {
    const s = await session(config('efficientnet_b0'))
    const plans = [await s.trainPlan(trainOptions('adamw')), await s.evalPlan({ batchSize: BATCH, imageSize: SIZE })]
    for (const plan of plans) {
      for (const row of plan.dump()) {
        expect(row.kernel, row.name).toMatch(/\S/)
        expect(row.kernel, row.name).not.toMatch(/\bref\b/)
      }
    }
    expect(plans[1]!.dump().filter((r) => r.life === 'prepared').length).toBe(49)
    expect(plans[0]!.dump().filter((r) => r.life === 'saved').length).toBeGreaterThan(49)
  })
})
