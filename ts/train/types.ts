/** Public types of the training side: options of the Trainer, results, events, callbacks. */
import type { BadFile, DataBackend, EvalTransform, ImageDataset, Interpolation } from '../data/types.js'
import type { EffnetError } from '../errors.js'
import type { PrecisionInput } from '../infer/types.js'
import type { Model } from '../model.js'
import type { Measuring } from '../runtime/tuning.js'

export type OptimizerName = 'adamw' | 'sgd' | 'rmsprop' | 'rmsprop_tf'

export interface OptimizerOptions {
  name: OptimizerName
  /** Peak learning rate. Never scaled, except the default from scratch: 0.005 per 128 images. */
  lr?: number
  /** Not applied to BN and biases. Default 0.01 (adamw), 1e-5 (others). */
  weightDecay?: number
  /** sgd, rmsprop: default 0.9. */
  momentum?: number
  nesterov?: boolean
  /** rmsprop: default 0.9. */
  alpha?: number
  /** adamw: default [0.9, 0.999]. */
  betas?: readonly [number, number]
  /** Default 1e-8 (adamw), 1e-3 (rmsprop_tf, inside the root), 1e-2 (rmsprop, outside). */
  eps?: number
}

export type ScheduleName = 'cosine' | 'exponential' | 'linear' | 'constant'

export interface ScheduleOptions {
  name: ScheduleName
  /** Linear over so many epochs; the first step has rate 0 from scratch, peak / steps in fine-tuning. */
  warmupEpochs?: number
  /** exponential: factor and epochs between its steps. Default 0.97 and 2.4. */
  rate?: number
  decayEpochs?: number
}

export interface AugmentOptions {
  /** Share of the image's area; default [0.35, 1] with weights, [0.08, 1] from scratch. */
  scale?: readonly [number, number]
  ratio?: readonly [number, number]
  hflip?: number
  interpolation?: Interpolation
}

export interface CheckpointOptions {
  /** Default 1; 0 = at the end, and where an epoch was the best so far. */
  everyEpochs?: number
  everySteps?: number
  everyMinutes?: number
  /** Chooses `best`: a metric name. Default 'val/top1' (highest); losses: lowest. */
  monitor?: string
  mode?: 'max' | 'min'
}

/** Of fp16-mixed: what the loss is multiplied by, so that gradients do not vanish in FP16. */
export interface LossScaleOptions {
  /** Default 65536. */
  initial?: number
  /** Times this after `interval` steps without a skipped one; defaults 2 and 2000. */
  growth?: number
  interval?: number
  /** Times this, and never below 1, where gradients are not finite: that step is skipped. Default 0.5. */
  backoff?: number
}

export interface EmaOptions {
  /** d = min(decay, (1 + t) / (10 + t)) after t updates. */
  decay: number
}

export interface TrainerOptions {
  model: Model
  /** 'finetune': the model came with weights. 'scratch': the model's own recipe. Default by the model. */
  recipe?: 'finetune' | 'scratch'
  optimizer?: OptimizerName | OptimizerOptions
  /** Peak learning rate; the same as `optimizer.lr`. */
  lr?: number
  weightDecay?: number
  schedule?: ScheduleName | ScheduleOptions
  warmupEpochs?: number
  labelSmoothing?: number
  /**
   * false, a decay, or options. While a validation measures the average, `model.predict` answers with it; what `model.save` writes
   * are the weights.
   */
  ema?: boolean | number | EmaOptions
  /** Must be the model's; there so that a configuration can state it. */
  precision?: PrecisionInput
  /** Default 32. */
  batchSize?: number
  /**
   * Batches whose gradients are averaged for one step, as if they were one batch but for BN's statistics. Default 1. Steps, schedule
   * and `maxSteps` count updates.
   */
  accumulate?: number
  /** Of validation; default batchSize. */
  evalBatchSize?: number
  /** Side in pixels; default the model's. */
  imageSize?: number
  /** Of validation; default imageSize. */
  evalImageSize?: number
  augment?: AugmentOptions
  /** Crop side / short side in validation; default 0.875. */
  cropPct?: number
  /** Of validation; default the model's. */
  interpolation?: Interpolation
  dropRate?: number
  dropPathRate?: number
  /** Of running statistics, torch's sense: running = (1 - m) * running + m * batch. Default 0.1 with weights, the model's from scratch. */
  bnMomentum?: number
  /** Global gradient norm; 0 = off. */
  clipNorm?: number
  /** With precision fp16-mixed only. */
  lossScale?: LossScaleOptions
  /**
   * On a GPU, with precision bf16-mixed or fp16-mixed: gradients of the weights of dense convolutions larger than 1x1 are rounded to
   * 16 bits before the update, as cuDNN's are, which has no FP32 ones of 16-bit images. Default false: own kernels make them, in FP32.
   */
  halfWeightGradients?: boolean
  maxEpochs?: number
  maxSteps?: number
  /** Milliseconds, '12h', '90m', '30s' or 'DD:HH:MM:SS'; when used up: checkpoint, status 'interrupted'. */
  maxTime?: number | string
  seed?: number
  /**
   * As of `createModel`; counts for what the model binds from then on. Without it a run on a GPU keeps the kernels that it began
   * with in its checkpoints, so that going on gives the bits of an uninterrupted run.
   */
  deterministic?: boolean
  /** Epochs between validations; default 1, 0 = only at the end. */
  valEvery?: number
  /** Steps between lines of steps.jsonl; default: 400 lines a run, every 50 steps at most. */
  logEvery?: number
  checkpoint?: CheckpointOptions
  callbacks?: readonly Callback[]
  /** The run folder. Without it nothing is written. */
  outDir?: string
  /**
   * Where images are decoded, cropped and flipped, of training and of validation. 'gpu': by the GPU of the model, with nvJPEG; what
   * that does not take (other formats, CMYK) the CPU decodes, as a warning and `cpuDecodedFiles` say. Default 'cpu'.
   */
  dataBackend?: DataBackend
  /** Decoding threads; default: usable CPUs. */
  workers?: number
  prefetch?: number
  /** Unreadable files allowed: a count, or a fraction of the dataset when below 1. Default 0.001, at least 10 files. */
  maxBad?: number
  /** Rotate as the EXIF tag says; default the model's. Belongs to the model afterwards. */
  exifOrientation?: boolean
  maxPixels?: number
  /** Aborted: the step in work ends, a checkpoint is written, then EFF_ABORTED is thrown. */
  signal?: AbortSignal
  /** Kept in config.yaml as the user gave it (the command line puts its options here). */
  config?: Readonly<Record<string, unknown>>
  /** Written to environment.json. */
  command?: readonly string[]
}

/** Every value in force, as written to resolved.yaml; plain data. */
export interface ResolvedOptions {
  recipe: 'finetune' | 'scratch'
  model: string
  numClasses: number
  precision: string
  batchSize: number
  accumulate: number
  evalBatchSize: number
  imageSize: number
  evalImageSize: number
  optimizer: Required<Omit<OptimizerOptions, 'betas'>> & { betas: [number, number] }
  schedule: Required<ScheduleOptions>
  labelSmoothing: number
  ema: number
  augment: { scale: [number, number]; ratio: [number, number]; hflip: number; interpolation: Interpolation }
  cropPct: number
  interpolation: Interpolation
  dropRate: number
  dropPathRate: number
  bnMomentum: number
  clipNorm: number
  /** null: the precision needs none. */
  lossScale: Required<LossScaleOptions> | null
  halfWeightGradients: boolean
  maxEpochs: number
  maxSteps: number | null
  maxTimeMs: number | null
  seed: number
  deterministic: boolean
  valEvery: number
  logEvery: number
  checkpoint: Required<CheckpointOptions>
  dataBackend: DataBackend
  workers: number
  prefetch: number
  /** null: 0.1 %, at least 10 files. */
  maxBad: number | null
  exifOrientation: boolean
  maxPixels: number
}

export type Metrics = Record<string, number>

export interface FitOptions {
  train: ImageDataset
  val?: ImageDataset
  /**
   * 'auto': continue `outDir`, or start it where it holds no valid checkpoint. 'last': continue it, EFF_CKPT_MISSING without.
   * A path: a checkpoint or a run folder. Default: start; EFF_RUN_EXISTS where `outDir` holds a run.
   */
  resume?: 'auto' | 'last' | (string & {})
}

export interface FitResult {
  status: 'finished' | 'interrupted'
  /** Why it ended: 'epochs', 'steps', 'early-stop', 'time', or what `stop` was given. */
  reason: string
  /** Whole epochs done. */
  epoch: number
  /** Optimizer steps done. */
  step: number
  /** Of the raw weights at the end: 'val/top1' and 'val/top5' in percent, 'val/loss'; 'train/loss'; 'val_ema/...' with EMA. */
  metrics: Metrics
  best?: { metric: string; value: number; epoch: number; step: number }
  /** Training throughput without validation and start-up. */
  imagesPerS: number
  /** Share of the training time spent waiting for data, 0..1. */
  dataWait: number
  elapsedMs: number
  /** Folder of the last checkpoint; absent without `outDir`. */
  checkpoint?: string
  bestCheckpoint?: string
  outDir?: string
  report?: string
  badFiles: readonly BadFile[]
  /** With dataBackend 'gpu': files of this process that the CPU decoded. */
  cpuDecodedFiles?: number
  /** Of a host that had no page-locked memory left: bytes of ordinary memory that this run's copies to a GPU went through, more slowly. */
  unlockedBytes?: number
}

export interface EvaluateOptions {
  data: ImageDataset
  /** Default: the model's weights as they are. 'best' and 'last' of `outDir`, or a checkpoint folder. */
  checkpoint?: 'best' | 'last' | (string & {})
  batchSize?: number
  imageSize?: number
  /** Per-class counts, confusion matrix and worst errors; default true. */
  details?: boolean
  signal?: AbortSignal
  onProgress?: (done: number, total: number) => void
}

/** Settings of `evaluateModel` that the Trainer otherwise knows. */
export interface EvaluateModelOptions extends Omit<EvaluateOptions, 'checkpoint'> {
  cropPct?: number
  interpolation?: EvalTransform['interpolation']
  /** Where images are decoded and cropped; default 'cpu'. */
  dataBackend?: DataBackend
  workers?: number
  prefetch?: number
  maxBad?: number
  exifOrientation?: boolean
  maxPixels?: number
}

export interface WorstError {
  path: string
  label: number
  predicted: number
  /** Of the predicted class. */
  score: number
  /** -log p of the true class. */
  loss: number
}

export interface EvaluateDetails {
  classes: readonly string[]
  /** [K, K], row = truth, column = prediction. Absent above 1000 classes. */
  confusion?: Uint32Array
  perClass: { count: number; top1: number; top5: number; predicted: number }[]
  worst: WorstError[]
}

export interface EvaluateResult {
  /** 'val/top1', 'val/top5' in percent; 'val/loss': mean cross-entropy. */
  metrics: Metrics
  images: number
  imagesPerS: number
  elapsedMs: number
  badFiles: readonly BadFile[]
  /** With dataBackend 'gpu': files that the CPU decoded. */
  cpuDecodedFiles?: number
  details?: EvaluateDetails
}

// ---- events -----------------------------------------------------------------------------------------------------

export interface StartEvent {
  type: 'start'
  options: ResolvedOptions
  stepsPerEpoch: number
  totalSteps: number
  trainImages: number
  valImages: number
  classes: readonly string[]
  /** Where a resumed run continues. */
  resumed?: { epoch: number; step: number; sample: number; path: string }
}

export interface StepEvent {
  type: 'step'
  /** Of the epoch in work, from 1; so in all events of an epoch. */
  epoch: number
  /** Optimizer steps done, this one included. */
  step: number
  /** Within the epoch, this one included. */
  stepInEpoch: number
  stepsPerEpoch: number
  totalSteps: number
  loss: number
  /** Running mean over the epoch. */
  meanLoss: number
  /** Running training accuracy of the epoch, percent. */
  top1: number
  lr: number
  gradNorm?: number
  /** With fp16-mixed: the scale after this step, and the steps skipped so far in the run. */
  lossScale?: number
  skippedSteps?: number
  /** Since the start of the epoch (the part of it in this process). */
  imagesPerS: number
  /** Share of time spent waiting for data, same span. */
  dataWait: number
  stepMs: number
  waitMs: number
  elapsedMs: number
}

export interface ValidationStepEvent {
  type: 'validation-step'
  epoch: number
  done: number
  total: number
}

export interface ValidationEvent {
  type: 'validation'
  epoch: number
  step: number
  metrics: Metrics
  best: boolean
  elapsedMs: number
}

export interface EpochEvent {
  type: 'epoch'
  /** The number of the epoch that ended, from 1. */
  epoch: number
  step: number
  /** All columns of metrics.csv. */
  metrics: Metrics
  best: boolean
  elapsedMs: number
}

export interface CheckpointEvent {
  type: 'checkpoint'
  path: string
  kinds: ('last' | 'best')[]
  /** Whole epochs done. */
  epoch: number
  step: number
  bytes: number
  ms: number
}

export interface WarningEvent {
  type: 'warning'
  code: string
  message: string
  hint?: string
}

export interface EndEvent {
  type: 'end'
  result?: FitResult
  error?: EffnetError
}

/**
 * Kernels of a GPU's ops are measured, or have been: once for each plan, and not where it is known what came of it. Those of training
 * come before the start event.
 */
export interface KernelsEvent extends Measuring {
  type: 'kernels'
}

export type TrainerEvent =
  | KernelsEvent
  | StartEvent
  | StepEvent
  | ValidationStepEvent
  | ValidationEvent
  | EpochEvent
  | CheckpointEvent
  | WarningEvent
  | EndEvent

// ---- callbacks --------------------------------------------------------------------------------------------------

/** What callbacks may read; to `stop` and to `warn` is what they may do. */
export interface TrainerContext {
  readonly model: Model
  readonly options: ResolvedOptions
  readonly outDir: string | undefined
  /** Whole epochs done. */
  readonly epoch: number
  readonly step: number
  readonly stepsPerEpoch: number
  readonly totalSteps: number
  readonly metrics: Readonly<Metrics>
  stop(reason: string): void
  warn(code: string, message: string, hint?: string): void
}

/**
 * All optional, awaited, called in the order of registration. One that throws ends the run after a checkpoint; in `onTeardown`,
 * when all is saved, and in `onException` it is a warning ('after-error'). What begins with `on` and is no hook is an error.
 */
export interface Callback {
  readonly name: string
  onSetup?(ctx: TrainerContext): void | Promise<void>
  onFitStart?(ctx: TrainerContext, event: StartEvent): void | Promise<void>
  onEpochStart?(ctx: TrainerContext): void | Promise<void>
  onStepStart?(ctx: TrainerContext): void | Promise<void>
  onStepEnd?(ctx: TrainerContext, event: StepEvent): void | Promise<void>
  onEpochEnd?(ctx: TrainerContext, event: EpochEvent): void | Promise<void>
  onValidationStart?(ctx: TrainerContext): void | Promise<void>
  onValidationBatch?(ctx: TrainerContext, event: ValidationStepEvent): void | Promise<void>
  onValidationEnd?(ctx: TrainerContext, event: ValidationEvent): void | Promise<void>
  onCheckpointSave?(ctx: TrainerContext, event: CheckpointEvent): void | Promise<void>
  onCheckpointLoad?(ctx: TrainerContext, path: string): void | Promise<void>
  onWarning?(ctx: TrainerContext, event: WarningEvent): void | Promise<void>
  onException?(ctx: TrainerContext, error: unknown): void | Promise<void>
  onInterrupt?(ctx: TrainerContext, reason: string): void | Promise<void>
  onFitEnd?(ctx: TrainerContext, result: FitResult): void | Promise<void>
  onTeardown?(ctx: TrainerContext): void | Promise<void>
  /** Plain data kept in checkpoints under `name`. */
  state?(): unknown
  load?(state: unknown): void
}
