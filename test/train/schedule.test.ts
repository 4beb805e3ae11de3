import { describe, expect, it } from 'vitest'
import { durationMs } from '../../ts/train/duration.js'
import { emaDecay, learningRate, type ScheduleSpec } from '../../ts/train/schedule.js'

const spec = (o: Partial<ScheduleSpec>): ScheduleSpec => ({
  name: 'cosine',
  lr: 0.32,
  stepsPerEpoch: 156,
  totalSteps: 78_000,
  warmupEpochs: 5,
  rate: 0.97,
  decayEpochs: 2.4,
  ...o,
})

describe('learning rate', () => {
  // Check values of NVIDIA's B0 recipe on 8 A100: LR0 0.32, 780 warm-up steps, 77 220 after.
  it.each([
    [0, 0],
    [1, 0.00041025641],
    [390, 0.16],
    [780, 0.32],
    [39_390, 0.16],
    [78_000, 0],
  ])('cosine with warm-up at step %d is %d', (t, lr) => {
    expect(learningRate(spec({}), t)).toBeCloseTo(lr, 10)
  })

  it('stays at 0 behind the end of a cosine', () => {
    expect(learningRate(spec({}), 90_000)).toBe(0)
  })

  it('exponential is a staircase of 0.97 every 2.4 epochs after the warm-up', () => {
    const e = spec({ name: 'exponential', lr: 1, stepsPerEpoch: 10, warmupEpochs: 1, totalSteps: 1000 })
    expect(learningRate(e, 5)).toBeCloseTo(0.5, 12)
    expect(learningRate(e, 10)).toBe(1)
    expect(learningRate(e, 10 + 23)).toBe(1)
    expect(learningRate(e, 10 + 24)).toBeCloseTo(0.97, 12)
    expect(learningRate(e, 10 + 24 * 7)).toBeCloseTo(0.97 ** 7, 12)
  })

  it('linear falls to 0 at the end, constant does not fall', () => {
    const l = spec({ name: 'linear', lr: 2, stepsPerEpoch: 10, warmupEpochs: 0, totalSteps: 40 })
    expect([0, 10, 20, 40].map((t) => learningRate(l, t))).toEqual([2, 1.5, 1, 0])
    expect(learningRate({ ...l, name: 'constant' }, 39)).toBe(2)
  })

  // NVIDIA's PyTorch form, by steps instead of epochs: lr * (e + 1) / warmup.
  it('with warmupStart 1 each step of the warm-up counts, the first too', () => {
    const s = spec({ lr: 1, stepsPerEpoch: 4, warmupEpochs: 1, totalSteps: 12, warmupStart: 1 })
    expect([0, 1, 2, 3, 4].map((t) => learningRate(s, t))).toEqual([0.25, 0.5, 0.75, 1, 1])
    expect(learningRate({ ...s, stepsPerEpoch: 1, totalSteps: 1 }, 0)).toBe(1)
  })

  it('a run that is all warm-up never exceeds its peak', () => {
    const s = spec({ lr: 1, stepsPerEpoch: 4, warmupEpochs: 1, totalSteps: 4 })
    expect([0, 1, 2, 3, 4].map((t) => learningRate(s, t))).toEqual([0, 0.25, 0.5, 0.75, 1])
  })
})

describe('moving average', () => {
  it.each([
    [1, 0.181818],
    [1000, 0.991089],
    [89_990, 0.9999],
    [1_000_000, 0.9999],
  ])('decay after %d updates is %d', (t, d) => {
    expect(emaDecay(0.9999, t)).toBeCloseTo(d, 6)
  })
})

describe('durations', () => {
  it.each([
    ['90s', 90_000],
    ['30m', 1_800_000],
    ['1.5h', 5_400_000],
    ['00:12:00:00', 43_200_000],
    ['01:00:05', 3_605_000],
    [250, 250],
  ] as const)('%s', (text, ms) => {
    expect(durationMs(text, 'maxTime')).toBe(ms)
  })

  it.each(['soon', '12', '1:30', 0, -5])('refuses %s', (text) => {
    expect(() => durationMs(text, 'maxTime')).toThrow(expect.objectContaining({ code: 'EFF_CONFIG_VALUE' }))
  })
})
