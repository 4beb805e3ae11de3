/** Trainer options: validation (unknown keys and wrong values are errors that say the mend) and defaults. */
import { z } from 'zod'
import { DEFAULT_CROP_PCT, DEFAULT_MAX_PIXELS } from '../data/decode.js'
import { DEFAULT_PREFETCH, defaultWorkers } from '../data/loader.js'
import { EffnetError } from '../errors.js'
import { normalizePrecision } from '../infer/precision.js'
import { nearest } from '../nearest.js'
import { checkDataBackend } from '../runtime/device.js'
import { checkHalfWeightGradients, FORMATS } from '../runtime/formats.js'
import { checkCallbacks } from './callback_check.js'
import { durationMs } from './duration.js'
import { optimizerDefaults, recipeFor } from './recipes.js'
import { SCHEDULES } from './schedule.js'
import type { OptimizerName, ResolvedOptions, TrainerOptions } from './types.js'

const OPTIMIZERS: readonly OptimizerName[] = ['adamw', 'sgd', 'rmsprop', 'rmsprop_tf']
const MAX_SEED = Number.MAX_SAFE_INTEGER

const positive = z.number().positive()
/** The engine counts in fp32: beyond it a rate is infinite. */
const rate = positive.max(3e38)
const notNegative = z.number().nonnegative()
const count = z.number().int().nonnegative()
const countFrom1 = z.number().int().positive()
const share = z.number().gte(0).lt(1)
const range = z.tuple([positive, positive]).refine(([a, b]) => a <= b, 'the first must not be above the second')
const optimizerName = z.enum(OPTIMIZERS as [OptimizerName, ...OptimizerName[]])
const scheduleName = z.enum(SCHEDULES as ['cosine', ...typeof SCHEDULES])
const interpolation = z.enum(['bicubic', 'bilinear'])
const size = z.number().int().min(32).max(4096)

/** By what is asked of them: `require` and `import` give classes of their own. */
const isModel = (value: unknown): boolean => {
  const model = value as { config?: unknown; weights?: unknown } | null
  return typeof model === 'object' && typeof model?.config === 'object' && typeof model.weights === 'object'
}
const isSignal = (value: unknown): boolean => typeof (value as AbortSignal | null)?.addEventListener === 'function'

const schema = z.strictObject({
  model: z.custom(isModel, 'a model that createModel or loadModel made'),
  recipe: z.enum(['finetune', 'scratch']).optional(),
  optimizer: z
    .union([
      optimizerName,
      z.strictObject({
        name: optimizerName,
        lr: rate.optional(),
        weightDecay: notNegative.optional(),
        momentum: share.optional(),
        nesterov: z.boolean().optional(),
        alpha: share.optional(),
        betas: z.tuple([share, share]).optional(),
        eps: notNegative.optional(),
      }),
    ])
    .optional(),
  lr: rate.optional(),
  weightDecay: notNegative.optional(),
  schedule: z
    .union([
      scheduleName,
      z.strictObject({
        name: scheduleName,
        warmupEpochs: notNegative.optional(),
        rate: positive.optional(),
        decayEpochs: positive.optional(),
      }),
    ])
    .optional(),
  warmupEpochs: notNegative.optional(),
  labelSmoothing: share.optional(),
  ema: z.union([z.boolean(), share, z.strictObject({ decay: share })]).optional(),
  precision: z.union([z.string(), z.number()]).optional(),
  batchSize: countFrom1.optional(),
  accumulate: countFrom1.max(65536).optional(),
  evalBatchSize: countFrom1.optional(),
  imageSize: size.optional(),
  evalImageSize: size.optional(),
  augment: z
    .strictObject({
      scale: range.refine(([, b]) => b <= 1, 'shares of the area are at most 1').optional(),
      ratio: range.optional(),
      hflip: z.number().gte(0).lte(1).optional(),
      interpolation: interpolation.optional(),
    })
    .optional(),
  cropPct: z.number().gt(0).lte(1).optional(),
  interpolation: interpolation.optional(),
  dropRate: share.optional(),
  dropPathRate: share.optional(),
  bnMomentum: z.number().gte(0).lte(1).optional(),
  clipNorm: notNegative.optional(),
  lossScale: z
    .strictObject({
      initial: z
        .number()
        .gte(1)
        .lte(2 ** 100)
        .optional(),
      growth: z.number().gt(1).lte(1024).optional(),
      interval: countFrom1.optional(),
      backoff: z.number().gt(0).lt(1).optional(),
    })
    .optional(),
  halfWeightGradients: z.boolean().optional(),
  maxEpochs: countFrom1.optional(),
  maxSteps: countFrom1.optional(),
  maxTime: z.union([z.string(), z.number()]).optional(),
  seed: z.number().int().gte(0).lte(MAX_SEED).optional(),
  deterministic: z.boolean().optional(),
  valEvery: count.optional(),
  logEvery: countFrom1.optional(),
  checkpoint: z
    .strictObject({
      everyEpochs: count.optional(),
      everySteps: count.optional(),
      everyMinutes: notNegative.optional(),
      monitor: z.string().min(1).optional(),
      mode: z.enum(['max', 'min']).optional(),
    })
    .optional(),
  callbacks: z.array(z.unknown()).optional(),
  outDir: z.string().min(1).optional(),
  dataBackend: z.enum(['cpu', 'gpu']).optional(),
  workers: countFrom1.optional(),
  prefetch: countFrom1.optional(),
  maxBad: notNegative.optional(),
  exifOrientation: z.boolean().optional(),
  maxPixels: countFrom1.optional(),
  signal: z.custom(isSignal, 'an AbortSignal').optional(),
  config: z.record(z.string(), z.unknown()).optional(),
  command: z.array(z.string()).optional(),
})

type Issue = z.core.$ZodIssue

/** Of a union, the issue of the alternative that was meant: the name for a word, the object for an object. */
function innermost(issue: Issue, value: unknown): Issue {
  if (issue.code !== 'invalid_union') return issue
  const alternative = typeof value === 'object' ? issue.errors.at(-1) : issue.errors[0]
  const inner = alternative?.[0]
  return inner ? innermost({ ...inner, path: [...issue.path, ...inner.path] } as Issue, value) : issue
}

const valueAt = (options: unknown, path: readonly PropertyKey[]): unknown =>
  path.reduce<unknown>((v, key) => (v as Record<PropertyKey, unknown> | undefined)?.[key], options)

/** @throws EFF_CONFIG_KEY with the nearest key, EFF_CONFIG_VALUE with the accepted form */
function checkOptions(options: TrainerOptions): void {
  if (typeof options !== 'object' || options === null) {
    throw new EffnetError('EFF_INVALID_ARGUMENT', 'new Trainer needs options', { hint: 'new Trainer({ model, outDir })' })
  }
  const parsed = schema.safeParse(options)
  if (parsed.success) {
    checkCallbacks(options.callbacks ?? [])
    return
  }
  const issues = parsed.error.issues.map((issue) => innermost(issue, valueAt(options, issue.path)))
  const issue = issues.find((i) => i.code === 'unrecognized_keys') ?? issues[0]!
  const where = issue.path.join('.')
  if (issue.code === 'unrecognized_keys') {
    const key = issue.keys[0]!
    const close = where === '' ? nearest(key, Object.keys(schema.shape)) : []
    throw new EffnetError('EFF_CONFIG_KEY', `no option "${where === '' ? key : `${where}.${key}`}"`, {
      ...(close.length > 0 ? { hint: `did you mean ${close.join(' or ')}?` } : {}),
      details: { key, nearest: close },
    })
  }
  const value = valueAt(options, issue.path)
  throw new EffnetError('EFF_CONFIG_VALUE', `${where} = ${JSON.stringify(value) ?? String(value)}: ${issue.message}`, {
    details: { key: where, value },
  })
}

/** Every value in force. */
export function resolveOptions(options: TrainerOptions): ResolvedOptions {
  checkOptions(options)
  const { model } = options
  const recipeName = options.recipe ?? (model.weights.kind === 'random' ? 'scratch' : 'finetune')
  const recipe = recipeFor(recipeName, model.config)
  const batchSize = options.batchSize ?? 32
  const imageSize = options.imageSize ?? model.config.imageSize
  const maxEpochs = options.maxEpochs ?? recipe.epochs
  checkPrecision(options)
  checkDataBackend(options.dataBackend, model.device)
  checkHalfWeightGradients(options.halfWeightGradients ?? false, model)
  const chosen = typeof options.optimizer === 'object' ? options.optimizer : { name: options.optimizer ?? recipe.optimizer }
  const defaults = optimizerDefaults(chosen.name)
  const lr = options.lr ?? ('lr' in chosen ? chosen.lr : undefined) ?? recipe.lr(batchSize * (options.accumulate ?? 1))
  const weightDecay = options.weightDecay ?? ('weightDecay' in chosen ? chosen.weightDecay : undefined) ?? defaults.weightDecay
  const schedule = typeof options.schedule === 'object' ? options.schedule : { name: options.schedule ?? recipe.schedule }
  const given = options.warmupEpochs ?? ('warmupEpochs' in schedule ? schedule.warmupEpochs : undefined)
  const monitor = options.checkpoint?.monitor ?? 'val/top1'
  return {
    recipe: recipeName,
    model: model.name,
    numClasses: model.config.numClasses,
    precision: model.precision,
    batchSize,
    accumulate: options.accumulate ?? 1,
    evalBatchSize: options.evalBatchSize ?? batchSize,
    imageSize,
    evalImageSize: options.evalImageSize ?? imageSize,
    optimizer: { ...defaults, ...defined(chosen), lr, weightDecay } as ResolvedOptions['optimizer'],
    schedule: {
      name: schedule.name,
      rate: ('rate' in schedule ? schedule.rate : undefined) ?? 0.97,
      decayEpochs: ('decayEpochs' in schedule ? schedule.decayEpochs : undefined) ?? 2.4,
      // A run too short for the recipe's warm-up warms up over its first half.
      warmupEpochs: given ?? Math.min(recipe.warmupEpochs, maxEpochs / 2),
    },
    labelSmoothing: options.labelSmoothing ?? recipe.labelSmoothing,
    ema: resolveEma(options.ema, recipe.ema),
    augment: {
      scale: [...(options.augment?.scale ?? recipe.scale)] as [number, number],
      ratio: [...(options.augment?.ratio ?? [3 / 4, 4 / 3])] as [number, number],
      hflip: options.augment?.hflip ?? 0.5,
      interpolation: options.augment?.interpolation ?? 'bicubic',
    },
    cropPct: options.cropPct ?? DEFAULT_CROP_PCT,
    interpolation: options.interpolation ?? model.config.preprocessing.interpolation,
    dropRate: options.dropRate ?? recipe.dropRate,
    dropPathRate: options.dropPathRate ?? recipe.dropPathRate,
    bnMomentum: options.bnMomentum ?? recipe.bnMomentum,
    clipNorm: options.clipNorm ?? 0,
    lossScale: resolveLossScale(options),
    halfWeightGradients: options.halfWeightGradients ?? false,
    maxEpochs,
    maxSteps: options.maxSteps ?? null,
    maxTimeMs: options.maxTime === undefined ? null : durationMs(options.maxTime, 'maxTime'),
    seed: options.seed ?? 0,
    deterministic: options.deterministic ?? model.session?.deterministic ?? false,
    valEvery: options.valEvery ?? 1,
    logEvery: options.logEvery ?? 50,
    checkpoint: {
      everyEpochs: options.checkpoint?.everyEpochs ?? 1,
      everySteps: options.checkpoint?.everySteps ?? 0,
      everyMinutes: options.checkpoint?.everyMinutes ?? 0,
      monitor,
      mode: options.checkpoint?.mode ?? (monitor.endsWith('loss') ? 'min' : 'max'),
    },
    dataBackend: options.dataBackend ?? 'cpu',
    workers: options.workers ?? defaultWorkers(),
    prefetch: options.prefetch ?? DEFAULT_PREFETCH,
    maxBad: options.maxBad ?? null,
    exifOrientation: options.exifOrientation ?? model.config.preprocessing.exifOrientation,
    maxPixels: options.maxPixels ?? DEFAULT_MAX_PIXELS,
  }
}

function checkPrecision(options: TrainerOptions): void {
  if (options.precision === undefined) return
  const wanted = normalizePrecision(options.precision)
  if (wanted === options.model.precision) return
  throw new EffnetError('EFF_CONFIG_VALUE', `precision = ${wanted}, but the model was made with ${options.model.precision}`, {
    hint: `createModel(name, { precision: '${wanted}' })`,
  })
}

/** PyTorch's GradScaler. */
function resolveLossScale({ lossScale, model }: TrainerOptions): ResolvedOptions['lossScale'] {
  if (FORMATS[model.precision].lossScale) {
    return { initial: 65536, growth: 2, interval: 2000, backoff: 0.5, ...defined(lossScale ?? {}) }
  }
  if (lossScale === undefined) return null
  throw new EffnetError('EFF_CONFIG_VALUE', `lossScale is for precision fp16-mixed; the model was made with ${model.precision}`, {
    hint: "createModel(name, { precision: 'fp16-mixed' })",
  })
}

function resolveEma(ema: TrainerOptions['ema'], recipe: number): number {
  if (ema === undefined) return recipe
  if (ema === true) return recipe || 0.9999
  if (ema === false) return 0
  return typeof ema === 'number' ? ema : ema.decay
}

/** Without keys whose value is undefined, so that spreading does not erase defaults. */
const defined = <T extends object>(o: T): Partial<T> =>
  Object.fromEntries(Object.entries(o).filter(([, v]) => v !== undefined)) as Partial<T>

type StepImages = Pick<ResolvedOptions, 'batchSize' | 'accumulate'>

/** A step takes no more images than there are. */
export function fittedBatch({ batchSize, accumulate }: StepImages, images: number): StepImages {
  if (images === 0 || images >= batchSize * accumulate) return { batchSize, accumulate }
  if (images >= batchSize) return { batchSize, accumulate: Math.floor(images / batchSize) }
  return { batchSize: images, accumulate: 1 }
}

/** A few hundred lines a run at least, so that short runs have a curve; every 50 steps at most. */
export const logInterval = (totalSteps: number): number => Math.min(50, Math.max(1, Math.floor(totalSteps / 400)))
