import { describe, expect, it } from 'vitest'
import type { Model } from '../../ts/model.js'
import { getModelConfig } from '../../ts/nn/index.js'
import { fittedBatch, logInterval, resolveOptions } from '../../ts/train/options.js'
import type { TrainerOptions } from '../../ts/train/types.js'

const model = (kind: 'random' | 'file', name = 'tf_efficientnet_b0') => {
  const config = getModelConfig(name, { numClasses: 10 })
  return { name, config, precision: 'fp32', weights: { kind } } as unknown as Model
}
/** `workers` so that no addon is asked for the count of CPUs. */
const resolve = (o: Omit<TrainerOptions, 'model'>, kind: 'random' | 'file' = 'file', name?: string) =>
  resolveOptions({ model: model(kind, name), workers: 1, ...o })

describe('what is no option of a training at all', () => {
  const wrong = (o: object) => resolve(o as Omit<TrainerOptions, 'model'>)
  it.each<[string, () => unknown, string, RegExp, RegExp?]>([
    ['no options', () => resolveOptions(undefined as never), 'EFF_INVALID_ARGUMENT', /needs options/, /new Trainer/],
    ['no model', () => resolveOptions({} as never), 'EFF_CONFIG_VALUE', /^model = undefined: a model that createModel/],
    ['an empty model', () => resolveOptions({ model: {} } as never), 'EFF_CONFIG_VALUE', /^model = \{\}: a model/],
    ['a signal', () => wrong({ signal: 5 }), 'EFF_CONFIG_VALUE', /^signal = 5: an AbortSignal/],
    ['a callback', () => wrong({ callbacks: [null] }), 'EFF_CONFIG_VALUE', /^callbacks\[0\] is null/, /an object/],
    ['a name', () => wrong({ callbacks: [{ onSetup() {} }] }), 'EFF_CONFIG_VALUE', /^callbacks\[0\] has no name/, /checkpoints/],
    ['a hook', () => wrong({ callbacks: [{ name: 'a', onSetup: 1 }] }), 'EFF_CONFIG_VALUE', /"a"\): onSetup is no function/],
    [
      'a misspelt hook',
      () => wrong({ callbacks: [{ name: 'a', onStepsEnd() {} }] }),
      'EFF_CONFIG_KEY',
      /there is no hook onStepsEnd/,
      /did you mean onStepEnd/,
    ],
    [
      'a hook of a class',
      () =>
        wrong({
          callbacks: [
            new (class {
              name = 'b'
              onBatchEnd() {}
            })(),
          ],
        }),
      'EFF_CONFIG_KEY',
      /there is no hook onBatchEnd/,
      /there are onSetup, .*onStepEnd/,
    ],
  ])('%s', (_, call, code, says, mend) => {
    const error = { code, message: expect.stringMatching(says) }
    expect(call).toThrow(expect.objectContaining(mend ? { ...error, hint: expect.stringMatching(mend) } : error))
  })

  it('callbacks may have more than hooks', () => {
    class Mine {
      name = 'mine'
      once = 1
      helper() {}
      onStepEnd() {}
    }
    expect(() => resolve({ callbacks: [new Mine(), { name: 'plain', onSetup: undefined } as never] })).not.toThrow()
  })
})

describe('defaults', () => {
  it('of fine-tuning', () => {
    expect(resolve({ maxEpochs: 4, imageSize: 64 })).toMatchObject({
      recipe: 'finetune',
      optimizer: { name: 'adamw', lr: 1e-3, weightDecay: 0.01, betas: [0.9, 0.999], eps: 1e-8 },
      schedule: { name: 'cosine', warmupEpochs: 1 },
      labelSmoothing: 0.1,
      ema: 0,
      augment: { scale: [0.35, 1], hflip: 0.5, interpolation: 'bicubic' },
      cropPct: 0.875,
      dropRate: 0,
      dropPathRate: 0,
      imageSize: 64,
      evalImageSize: 64,
      checkpoint: { monitor: 'val/top1', mode: 'max', everyEpochs: 1 },
    })
  })

  it('from scratch are the published recipe; only there the rate follows the batch size', () => {
    const b0 = resolve({ batchSize: 64 }, 'random')
    expect(b0).toMatchObject({
      recipe: 'scratch',
      optimizer: { name: 'rmsprop_tf', lr: 0.0025, weightDecay: 1e-5, momentum: 0.9, alpha: 0.9, eps: 1e-3 },
      schedule: { name: 'cosine', warmupEpochs: 5 },
      ema: 0.9999,
      dropRate: 0.2,
      dropPathRate: 0.2,
      maxEpochs: 500,
    })
    expect(resolve({}, 'random', 'efficientnetv2_s').maxEpochs).toBe(350)
    expect(resolve({ lr: 0.1, batchSize: 64 }, 'random').optimizer.lr).toBe(0.1)
  })

  it('BN momentum is 0.1 with weights, whatever the dialect; from scratch the model’s', () => {
    expect(getModelConfig('efficientnet_widese_b0').bnMomentum).toBe(0.01)
    expect(resolve({}, 'file', 'efficientnet_widese_b0').bnMomentum).toBe(0.1)
    expect(resolve({}, 'random', 'efficientnet_widese_b0').bnMomentum).toBe(0.01)
    expect(resolve({ bnMomentum: 0.2 }, 'file').bnMomentum).toBe(0.2)
  })

  it('give way to what is said', () => {
    const o = resolve({
      optimizer: { name: 'sgd', lr: 0.2, nesterov: true },
      schedule: { name: 'exponential', warmupEpochs: 0 },
      ema: true,
      checkpoint: { monitor: 'val/loss' },
      maxTime: '2h',
    })
    expect(o.optimizer).toMatchObject({ name: 'sgd', lr: 0.2, nesterov: true, momentum: 0.9, weightDecay: 1e-5 })
    expect(o.schedule).toEqual({ name: 'exponential', warmupEpochs: 0, rate: 0.97, decayEpochs: 2.4 })
    expect(o.ema).toBe(0.9999)
    expect(o.checkpoint.mode).toBe('min')
    expect(o.maxTimeMs).toBe(7_200_000)
  })

  it('a run shorter than its warm-up still reaches its rate', () => {
    expect(resolve({ maxEpochs: 1 }).schedule.warmupEpochs).toBe(0.5)
    expect(resolve({ maxEpochs: 6 }, 'random').schedule.warmupEpochs).toBe(3)
  })

  it('are plain data', () => {
    const o = resolve({ maxEpochs: 2 })
    expect(JSON.parse(JSON.stringify(o))).toEqual(o)
  })
})

describe('mistakes', () => {
  const bad = (o: Record<string, unknown>) => () => resolve(o as Omit<TrainerOptions, 'model'>)

  it('an unknown key names the nearest', () => {
    expect(bad({ maxEpoch: 3 })).toThrow(expect.objectContaining({ code: 'EFF_CONFIG_KEY', hint: 'did you mean maxEpochs?' }))
    expect(bad({ augment: { flip: 1 } })).toThrow(expect.objectContaining({ code: 'EFF_CONFIG_KEY' }))
  })

  it.each([
    [{ batchSize: 0 }],
    [{ lr: '0.1' }],
    [{ lr: -1 }],
    [{ labelSmoothing: 1 }],
    [{ optimizer: 'adam' }],
    [{ schedule: 'step' }],
    [{ augment: { scale: [0.9, 0.1] } }],
    [{ seed: -1 }],
    [{ seed: 1.5 }],
    [{ maxTime: 'soon' }],
    [{ imageSize: 16 }],
    [{ lr: 1e39 }],
    [{ optimizer: { name: 'sgd', lr: 1e300 } }],
    [{ precision: 'bf16-mixed' }],
  ])('%j is refused', (o) => {
    expect(bad(o)).toThrow(expect.objectContaining({ code: 'EFF_CONFIG_VALUE' }))
  })
})

it.each([
  // batchSize, accumulate, images: what a step takes then
  [32, 1, 32, 32, 1],
  [32, 1, 31, 31, 1],
  [32, 4, 128, 32, 4],
  [32, 4, 127, 32, 3],
  [32, 4, 33, 32, 1],
  [32, 4, 20, 20, 1],
  [32, 4, 0, 32, 4],
])('batches of %i, %i a step, of %i images', (batchSize, accumulate, images, fits, parts) => {
  expect(fittedBatch({ batchSize, accumulate }, images)).toEqual({ batchSize: fits, accumulate: parts })
})

it('a run logs every 50 steps, a short one 400 times at least', () => {
  expect([1, 400, 799, 800, 20_000, 1_000_000].map(logInterval)).toEqual([1, 1, 1, 2, 50, 50])
})
