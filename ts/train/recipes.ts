/** Defaults: fine-tuning (the model came with weights) and the models' own recipes from scratch. */
import type { ModelConfig } from '../nn/config.js'
import type { OptimizerName, ResolvedOptions, ScheduleName } from './types.js'

export interface Recipe {
  optimizer: OptimizerName
  lr: (batchSize: number) => number
  schedule: ScheduleName
  warmupEpochs: number
  epochs: number
  labelSmoothing: number
  /** 0 = off. */
  ema: number
  dropRate: number
  dropPathRate: number
  /** Torch's sense. */
  bnMomentum: number
  scale: [number, number]
}

/**
 * Pretrained features need small changes: no dropout, mild crops, one warm-up epoch; the peak rate is never scaled. Statistics
 * must reach the new data within a few epochs: BN momentum 0.1, also where the model's own recipe has 0.01.
 */
const finetune: Recipe = {
  optimizer: 'adamw',
  lr: () => 1e-3,
  schedule: 'cosine',
  warmupEpochs: 1,
  epochs: 10,
  labelSmoothing: 0.1,
  ema: 0,
  dropRate: 0,
  dropPathRate: 0,
  bnMomentum: 0.1,
  scale: [0.35, 1],
}

/**
 * NVIDIA's TensorFlow 2 recipes (RMSprop in TF form, 0.005 per 128 images, cosine after 5 warm-up epochs, moving average
 * 0.9999): 500 epochs for v1, 350 for V2. Their learned augmentation (AutoAugment, RandAugment) is not part of this version.
 */
const scratch = (config: ModelConfig): Recipe => ({
  optimizer: 'rmsprop_tf',
  lr: (batchSize) => (0.005 * batchSize) / 128,
  schedule: 'cosine',
  warmupEpochs: 5,
  epochs: config.family === 'v2' ? 350 : 500,
  labelSmoothing: 0.1,
  ema: 0.9999,
  dropRate: config.dropRate,
  dropPathRate: config.dropPathRate,
  bnMomentum: config.bnMomentum,
  scale: [0.08, 1],
})

export const recipeFor = (name: 'finetune' | 'scratch', config: ModelConfig): Recipe =>
  name === 'finetune' ? finetune : scratch(config)

/** Weight decay, momentum and so on where the user names an optimizer only. */
export function optimizerDefaults(name: OptimizerName): ResolvedOptions['optimizer'] {
  const base = {
    name,
    lr: 0,
    weightDecay: 1e-5,
    momentum: 0.9,
    nesterov: false,
    alpha: 0.9,
    betas: [0.9, 0.999] as [number, number],
  }
  if (name === 'adamw') return { ...base, weightDecay: 0.01, eps: 1e-8 }
  if (name === 'sgd') return { ...base, eps: 0 }
  return { ...base, eps: name === 'rmsprop_tf' ? 1e-3 : 1e-2 }
}
