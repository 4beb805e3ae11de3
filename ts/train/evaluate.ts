/** Top-1, top-5 and cross-entropy of a model over a labelled dataset. */
import { DEFAULT_PREFETCH, type NativeBatch, NativeImageLoader } from '../data/loader.js'
import type { BadFile, ImageDataset } from '../data/types.js'
import { EffnetError } from '../errors.js'
import type { Model } from '../model.js'
import { evalGeometry } from '../nn/index.js'
import { checkKeys } from '../option_keys.js'
import { checkImageDecoder } from '../runtime/device.js'
import { ahead, HELD_AHEAD } from './ahead.js'
import { DetailedMetrics, RunningMetrics } from './metrics.js'
import { notFinite } from './not_finite.js'
import type { EvaluateModelOptions, EvaluateResult } from './types.js'

/** @throws EFF_DATA_LABEL when the data's classes cannot be the model's */
export function checkClasses(model: Model, data: ImageDataset): void {
  const { numClasses } = model.config
  if (data.classes.length !== numClasses) {
    throw new EffnetError('EFF_DATA_LABEL', `${data.root}: ${data.classes.length} classes, the model has ${numClasses}`, {
      hint: `createModel(name, { numClasses: ${data.classes.length} }) replaces the classifier`,
      details: { data: data.classes.length, model: numClasses },
    })
  }
  const names = model.classes
  if (names === undefined || model.weights.kind !== 'checkpoint') return
  const at = data.classes.findIndex((name, i) => name !== names[i])
  if (at < 0) return
  throw new EffnetError(
    'EFF_DATA_LABEL',
    `${data.root}: class ${at} is "${data.classes[at]}", in the checkpoint "${names[at]}"`,
    {
      hint: 'use the data (or the class folders) that the model was trained on',
      details: { index: at },
    },
  )
}

const EVALUATE_KEYS = {
  data: true,
  batchSize: true,
  imageSize: true,
  details: true,
  signal: true,
  onProgress: true,
  cropPct: true,
  interpolation: true,
  workers: true,
  prefetch: true,
  maxBad: true,
  exifOrientation: true,
  maxPixels: true,
  dataBackend: true,
} as const satisfies Record<keyof EvaluateModelOptions, true>

export interface Watch {
  onProgress?: (done: number, total: number) => void | Promise<void>
  /** Ends it before the next batch, or while that is awaited. */
  signal?: AbortSignal | undefined
}

/** Loader and size of a validation run; kept by the Trainer from one validation to the next. */
export class Evaluator {
  readonly size: number
  private readonly loader: NativeImageLoader
  private readonly classes: readonly string[]

  constructor(
    private readonly model: Model,
    private readonly options: EvaluateModelOptions,
    private readonly told: { onCpuDecoded?: (file: string) => void; onUnstaged?: (cause: unknown) => void } = {},
  ) {
    const { config } = model
    this.size = options.imageSize ?? config.evalSize
    const { data } = options
    this.classes = data.classes
    this.loader = new NativeImageLoader(data, {
      batchSize: Math.min(options.batchSize ?? 32, data.length),
      transform: {
        mode: 'eval',
        size: this.size,
        ...evalGeometry(config, this.size, options.cropPct),
        interpolation: options.interpolation ?? config.preprocessing.interpolation,
        exifOrientation: options.exifOrientation ?? config.preprocessing.exifOrientation,
        ...(options.maxPixels === undefined ? {} : { maxPixels: options.maxPixels }),
      },
      shuffle: false,
      ...(options.workers === undefined ? {} : { workers: options.workers }),
      prefetch: (options.prefetch ?? DEFAULT_PREFETCH) + (model.session.stagesAhead ? HELD_AHEAD - 1 : 0),
      ...(options.maxBad === undefined ? {} : { maxBad: options.maxBad }),
      ...model.session.loaderDevice(options.dataBackend),
      onCpuDecoded: told.onCpuDecoded,
    })
  }

  /** One pass. `details`: per-class counts, confusion and worst errors too. Undefined when it was aborted before its end; it is not used again then. */
  async run(details: boolean, watch: Watch = {}): Promise<EvaluateResult | undefined> {
    const { model, loader, options } = this
    const { labels, files } = options.data
    const running = new RunningMetrics()
    const detailed = details ? new DetailedMetrics(this.classes) : undefined
    const started = performance.now()
    let done = 0
    loader.load({ epoch: 0, sample: 0, seed: 0 })
    for await (const batch of this.batches(watch.signal)) {
      const input = { batch: batch.handle }
      const output = await model.plans.run(loader.batchSize, this.size, input)
      if (!Number.isFinite(output.loss)) {
        const first = await model.plans.findNonFinite(loader.batchSize, this.size, input)
        throw notFinite({ what: `loss is ${output.loss}`, first })
      }
      running.add(output.loss, output.ranks)
      if (detailed) {
        const own = Int32Array.from(batch.indices, (i) => labels[i]!)
        detailed.add(output.logits, output.ranks, own, batch.count, (i) => files[batch.indices[i]!]!)
      }
      done += batch.count
      await watch.onProgress?.(done, options.data.length)
    }
    if (watch.signal?.aborted && done < options.data.length - loader.badFiles.length) return undefined
    if (running.count === 0) {
      throw new EffnetError('EFF_DATA_EMPTY', `${options.data.root}: none of its ${options.data.length} images could be read`, {
        hint: 'replace the images, or convert them to JPEG or PNG',
        details: { badFiles: loader.badFiles },
      })
    }
    const elapsedMs = performance.now() - started
    return {
      metrics: { 'val/top1': running.top1, 'val/top5': running.top5, 'val/loss': running.loss },
      images: running.count,
      imagesPerS: (1000 * running.count) / elapsedMs,
      elapsedMs,
      badFiles: loader.badFiles,
      ...(options.dataBackend === 'gpu' ? { cpuDecodedFiles: loader.cpuDecoded } : {}),
      ...(detailed ? { details: detailed.result() } : {}),
    }
  }

  get badFiles(): readonly BadFile[] {
    return this.loader.badFiles
  }

  get cpuDecoded(): number {
    return this.loader.cpuDecoded
  }

  private async *batches(signal: AbortSignal | undefined): AsyncGenerator<NativeBatch, void, undefined> {
    const { loader, size } = this
    const { plans, session } = this.model
    if (!session.stagesAhead) return yield* loader.epoch(signal)
    await plans.prepare(loader.batchSize, size)
    const batches = (end: AbortSignal) => loader.epoch(end, { kept: true })
    const stage = (batch: NativeBatch) => plans.prefetch(loader.batchSize, size, { batch: batch.handle })
    yield* ahead({ batches, stage, onUnstaged: (cause) => this.told.onUnstaged?.(cause) }, signal)
  }

  close(): void {
    this.loader.close()
  }
}

/**
 * Evaluates the weights as they are, with the model's own evaluation size and crop unless told otherwise.
 * @throws EFF_DATA_LABEL, EFF_DATA_DECODE (too many unreadable files), EFF_DATA_EMPTY (all are), EFF_NAN (where the network first gave it), EFF_ABORTED
 */
export async function evaluateModel(model: Model, options: EvaluateModelOptions): Promise<EvaluateResult> {
  checkKeys('evaluateModel', options, EVALUATE_KEYS)
  checkClasses(model, options.data)
  model.session.loaderDevice(options.dataBackend)
  await checkImageDecoder(options.dataBackend ?? 'cpu')
  const evaluator = new Evaluator(model, options)
  try {
    const { signal, onProgress } = options
    const watch = { signal, ...(onProgress ? { onProgress } : {}) }
    const result = await evaluator.run(options.details ?? true, watch)
    if (result) return result
    throw new EffnetError('EFF_ABORTED', 'evaluation was aborted', { cause: signal?.reason })
  } finally {
    evaluator.close()
  }
}
