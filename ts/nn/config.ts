/** What one classifier is: architecture, dialect and preprocessing, as plain data. Made by `getModelConfig` (registry.ts). */
import type { Activation } from '../graph/types.js'

/**
 * Whose conventions a model follows (padding, BN constants, stochastic depth, initialisation, evaluation crop).
 * `timm` has two: names with `tf_` use "SAME" padding and BN eps 1e-3, the others symmetric padding and eps 1e-5.
 */
export type Dialect = 'timm' | 'torchvision' | 'nvidia-tf2' | 'nvidia-pytorch'
export const DIALECTS: readonly Dialect[] = ['timm', 'torchvision', 'nvidia-tf2', 'nvidia-pytorch']

export type Family = 'v1' | 'widese' | 'v2' | 'lite'
export type Padding = 'same' | 'symmetric'

export interface StageConfig {
  readonly op: 'mbconv' | 'fused'
  readonly kernel: number
  /** Of the first block; the others have stride 1 and `in` = `out`. */
  readonly stride: number
  readonly expand: number
  readonly in: number
  readonly out: number
  readonly repeats: number
  readonly se: boolean
}

export interface Preprocessing {
  /** Per channel, of pixels scaled to 0..1. */
  readonly mean: readonly [number, number, number]
  readonly std: readonly [number, number, number]
  readonly interpolation: 'bicubic' | 'bilinear'
  /** Crop side / short side after the resize. */
  readonly cropPct: number
  /** `squash` resizes the whole image to the square instead of resizing the short side and cropping. */
  readonly cropMode: 'center' | 'squash'
  /** Short side before the crop at `evalSize`, as the source computes it. */
  readonly evalResize: number
  /** Rotate as the EXIF tag says; timm's and torchvision's pipelines do not. */
  readonly exifOrientation: boolean
}

export interface ModelConfig {
  /** As in the registry, e.g. `tf_efficientnet_b0`. */
  readonly name: string
  /** The architecture without dialect, e.g. `efficientnet_b0`. */
  readonly arch: string
  readonly family: Family
  readonly dialect: Dialect
  readonly padding: Padding
  readonly bnEps: number
  /** Torch's sense: running = (1 - momentum) * running + momentum * batch. */
  readonly bnMomentum: number
  readonly act: Activation
  readonly numClasses: number
  readonly stem: number
  readonly stages: readonly StageConfig[]
  readonly head: number
  /** Squeeze width: a quarter of the block's input channels, or (WideSE) of its expanded channels; at least 1. */
  readonly se: { readonly rule: 'input' | 'expanded'; readonly ratio: number }
  /** Dropout before the classifier and stochastic depth of the last block, as the model's own recipe has them. */
  readonly dropRate: number
  readonly dropPathRate: number
  /** Resolution of training and of evaluation. */
  readonly imageSize: number
  readonly evalSize: number
  readonly preprocessing: Preprocessing
}

/** Pixel constants in 0..255 units, as `input_normalize` takes them. */
export const pixelNorm = (p: Preprocessing): { mean: number[]; std: number[] } => ({
  mean: p.mean.map((v) => v * 255),
  std: p.std.map((v) => v * 255),
})

/**
 * Short side to resize to before a centre crop of `size` pixels: the source's own figure at the model's evaluation size, else
 * round(size / cropPct).
 */
export function evalResize(config: Pick<ModelConfig, 'evalSize' | 'preprocessing'>, size: number, cropPct?: number): number {
  if (cropPct === undefined && size === config.evalSize) return config.preprocessing.evalResize
  return Math.round(size / (cropPct ?? config.preprocessing.cropPct))
}

/** What evaluation does with an image, as decoding takes it. An explicit `cropPct` asks for a crop, also of a model that squashes. */
export function evalGeometry(
  config: Pick<ModelConfig, 'evalSize' | 'preprocessing'>,
  size: number,
  cropPct?: number,
): { resizeTo: number; squash: boolean } {
  const squash = cropPct === undefined && config.preprocessing.cropMode === 'squash'
  return { resizeTo: squash ? size : evalResize(config, size, cropPct), squash }
}
