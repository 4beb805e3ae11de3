/** Public types of models and predictions. */

import type { Interpolation } from '../data/types.js'
import type { ErrorCode } from '../errors.js'
import type { Dialect } from '../nn/index.js'
import type { Device } from '../runtime/device.js'

export type Precision = 'fp32' | 'tf32' | 'fp16-mixed' | 'bf16-mixed'
/** What users may write: Lightning's aliases too. */
export type PrecisionInput = Precision | '32-true' | '32' | 32 | '16-mixed' | '16' | 16 | 'fp16' | 'bf16'
export type { Device }

export interface CreateModelOptions {
  /** `true`: the weights that come with the package; a string: a safetensors file under timm, torchvision or NVIDIA names. Default: random. */
  pretrained?: boolean | string
  /** Default: what the weights have, else 1000. Another size than the weights' replaces the head (N(0, 0.01), bias 0). */
  numClasses?: number
  /** Names of the classes, in order; sets `numClasses`. */
  classes?: readonly string[]
  /**
   * Whose conventions hold: padding, BN constants, crop, EXIF orientation. Default: those of the library whose tensor names the
   * weights have, else the model's own (a `tf_` name pads as TensorFlow does). EFF_CONFIG_VALUE where they cannot be of this model.
   */
  compat?: Dialect
  /** Default side in pixels for training and prediction; default the model's own. */
  imageSize?: number
  device?: Device
  /** `tf32` and `fp16-mixed` are for GPUs. Default `fp32`. */
  precision?: PrecisionInput
  /** Engine threads; default the CPUs this process may use. */
  threads?: number
  /**
   * What the model may take of its device's memory: a share (0.5, '50%') or an amount ('8GiB', bytes). On a GPU its arenas, plans and
   * what decodes images there (`dataBackend`), on the CPU its arenas. EFF_OOM says which batch fits. Default: what is free.
   */
  memoryLimit?: number | string
  /** Of the random initialisation; default 0. */
  seed?: number
  /**
   * On a GPU ops get the kernels that are fastest there, which are measured once; true: those of a fixed table, so that every run
   * gives the same bits with the same GPU and libraries. CPUs always do. Default false.
   */
  deterministic?: boolean
}

export interface LoadModelOptions {
  device?: Device
  precision?: PrecisionInput
  threads?: number
  /** As of `createModel`. */
  deterministic?: boolean
  /** As in `CreateModelOptions`. */
  memoryLimit?: number | string
  /** The moving average instead of the raw weights; EFF_CKPT_MISSING where the checkpoint has none. Default false. */
  ema?: boolean
}

/** How an image becomes the network's input in evaluation. */
export interface Preprocessing {
  /** Of RGB in 0..1. */
  mean: readonly [number, number, number]
  std: readonly [number, number, number]
  interpolation: Interpolation
  /** Crop side / short side after the resize. */
  cropPct: number
}

export interface ModelSummary {
  name: string
  /** Elements of parameters; running statistics are not counted. */
  params: number
  trainableParams: number
  /** 1e9 multiply-accumulates of one image at `imageSize`, as papers print GFLOPs. */
  gflops: number
  imageSize: number
  numClasses: number
  precision: Precision
  device: string
  preprocessing: Preprocessing
  weights: WeightsSource
}

/** Where the weights came from. */
export interface WeightsSource {
  kind: 'random' | 'file' | 'checkpoint'
  path?: string
  /** Names used in the file. */
  naming?: string
  /** Tensors taken from the file, of `total` in the model. */
  matched: number
  total: number
  /** The classifier was replaced: class counts of the file and of the model. */
  headReplaced?: { from: number; to: number }
}

export interface ParameterInfo {
  name: string
  /** As PyTorch has it, e.g. [32, 3, 3, 3]. */
  shape: readonly number[]
  size: number
  trainable: boolean
  role: 'parameter' | 'buffer'
}

/** 'backbone' (all but the classifier), 'all', a glob over names ('blocks.[0-3].*'), a regular expression or a predicate. */
export type FreezeSelector = string | RegExp | ((name: string) => boolean)

export interface PredictOptions {
  /** Default 5, at most the number of classes. */
  topK?: number
  /** Also give the logits. */
  logits?: boolean
  /** Images a step; default 32. */
  batchSize?: number
  imageSize?: number
  /** Crop side / short side after the resize; default the model's. */
  cropPct?: number
  interpolation?: Interpolation
  /** Rotate as the EXIF tag says; default true, false with `compat` 'timm' and 'torchvision'. */
  exifOrientation?: boolean
  /** Larger images are refused; default 178956970. */
  maxPixels?: number
  signal?: AbortSignal
}

export type EmbedOptions = Omit<PredictOptions, 'topK' | 'logits'>

export interface ClassScore {
  index: number
  label?: string
  /** Softmax probability. */
  score: number
}

export interface Prediction {
  /** As given, when a path was. */
  path?: string
  topk: ClassScore[]
  logits?: Float32Array
  error?: undefined
}

/** An image that could not be read; in its place in the output. `error` tells it from a result. */
export interface PredictionError {
  path?: string
  error: { code: ErrorCode; message: string }
  topk?: undefined
  logits?: undefined
  features?: undefined
}

export type PredictionResult = Prediction | PredictionError

export interface Embedding {
  path?: string
  /** [C]: pooled features before the classifier. */
  features: Float32Array
  error?: undefined
}

export type EmbeddingResult = Embedding | PredictionError
