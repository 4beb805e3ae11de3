/** The training loop's public face. One `fit` at a time; what a run does step by step is fit_run.ts. */

import type { ImageDataset, ImageInput } from '../data/types.js'
import { EffnetError } from '../errors.js'
import { asList, collect, predictStream } from '../infer/predict.js'
import type { PredictionResult, PredictOptions } from '../infer/types.js'
import type { Model } from '../model.js'
import { findFolder } from './checkpoint_folder.js'
import { evaluateModel } from './evaluate.js'
import { EventHub } from './events.js'
import { FitRun } from './fit_run.js'
import { resolveOptions } from './options.js'
import { RunFolder } from './run_folder.js'
import type {
  EvaluateOptions,
  EvaluateResult,
  FitOptions,
  FitResult,
  ResolvedOptions,
  TrainerEvent,
  TrainerOptions,
} from './types.js'

/** Two runs would pull the same weights apart. */
const inTraining = new WeakSet<Model>()

function checkData(options: FitOptions | undefined): void {
  const isData = (d: ImageDataset | undefined) => Array.isArray(d?.classes) && Number.isInteger(d.length)
  const given = options as Partial<FitOptions> | null | undefined
  const wrong = !isData(given?.train) ? 'train' : given?.val !== undefined && !isData(given.val) ? 'val' : undefined
  if (wrong === undefined) return
  throw new EffnetError('EFF_INVALID_ARGUMENT', `fit: ${wrong} is no dataset`, {
    hint: 'trainer.fit(await imageFolder(dir)), or trainer.fit({ train, val }) with what imageFolder gave',
  })
}

export class Trainer {
  /** Every value in force. */
  readonly options: ResolvedOptions
  private readonly hub = new EventHub()
  private run: FitRun | undefined
  private lastRun: FitRun | undefined
  private stopBeforeStart: string | undefined
  private closed = false

  /** @throws EFF_CONFIG_KEY, EFF_CONFIG_VALUE */
  constructor(private readonly given: TrainerOptions) {
    this.options = resolveOptions(given)
  }

  get model(): Model {
    return this.given.model
  }

  /**
   * Trains until `maxEpochs`, `maxSteps`, `maxTime`, a callback or `stop` ends it. The best and the last weights are in
   * `outDir/checkpoints`; the model holds the last ones.
   * @throws EFF_RUN_EXISTS, EFF_DATA_LABEL, EFF_DATA_EMPTY, EFF_DATA_DECODE (too many unreadable files), EFF_DATA_STALLED (none
   *   for minutes; a checkpoint was written before), EFF_NAN (step in `details`), EFF_CKPT_*, EFF_OOM, EFF_ABORTED (the signal; a
   *   checkpoint was written before)
   */
  async fit(options: FitOptions): Promise<FitResult> {
    if (this.closed) throw new EffnetError('EFF_CLOSED', 'the trainer was closed')
    checkData(options)
    if (this.run) throw new EffnetError('EFF_INVALID_ARGUMENT', 'fit is running; await it first')
    const { model } = this
    if (inTraining.has(model)) {
      throw new EffnetError('EFF_INVALID_ARGUMENT', 'another trainer is training this model', {
        hint: 'await its fit first, or give each trainer a model of its own',
      })
    }
    inTraining.add(model)
    try {
      const run = new FitRun(this.given, this.options, this.hub)
      this.run = run
      this.lastRun = run
      if (this.stopBeforeStart !== undefined) run.stop(this.stopBeforeStart, 'interrupted')
      const result = await run.fit(options)
      this.hub.emit({ type: 'end', result })
      return result
    } catch (cause) {
      const error =
        cause instanceof EffnetError
          ? cause
          : new EffnetError('EFF_INTERNAL', `training failed: ${(cause as Error)?.message ?? cause}`, { cause })
      this.hub.emit({ type: 'end', error })
      throw cause
    } finally {
      inTraining.delete(model)
      this.run = undefined
      this.stopBeforeStart = undefined
    }
  }

  /** Events of the run that is on, or of the next one; ends with it. After `close` there are none. */
  events(): AsyncIterableIterator<TrainerEvent> {
    const events = this.hub.subscribe()
    if (this.closed && !this.run) this.hub.close()
    return events
  }

  /** Ends the run after the step in work: a checkpoint is written there, the result's status is 'interrupted'. */
  stop(reason: string): void {
    if (this.run) this.run.stop(reason, 'interrupted')
    else this.stopBeforeStart = reason
  }

  /** Writes a checkpoint after the step in work and goes on; nothing where no run is on or there is no `outDir`. */
  requestCheckpoint(): void {
    this.run?.requestCheckpoint()
  }

  /**
   * After the step in work: log files that were moved away (logrotate) are begun anew, with their first line. Files are opened for
   * each write, so that this only makes them appear at once; a file that is there is not touched.
   */
  reopenLogs(): void {
    this.run?.reopenLogs()
  }

  /**
   * For a program that ends: its exit code goes into status.json, and a run that is still on is noted there as interrupted.
   * Nothing more is written there.
   */
  async conclude(exitCode: number, message?: string): Promise<void> {
    await this.lastRun?.conclude(exitCode, message)
  }

  /**
   * Evaluates the model as it is, or a checkpoint of the run (which the model holds afterwards).
   * @throws EFF_INVALID_ARGUMENT for a checkpoint while `fit` runs, and what `evaluateModel` throws
   */
  async evaluate(options: EvaluateOptions): Promise<EvaluateResult> {
    const { checkpoint, ...rest } = options
    if (checkpoint !== undefined && this.run) {
      throw new EffnetError('EFF_INVALID_ARGUMENT', `checkpoint: '${checkpoint}' would replace the weights that fit trains`, {
        hint: 'await fit, or evaluate the checkpoint with a model of its own',
      })
    }
    if (checkpoint !== undefined) await this.model.loadWeights(await this.findCheckpoint(checkpoint))
    const { batchSize, imageSize, details, signal, onProgress } = rest
    const o = this.options
    return evaluateModel(this.model, {
      data: rest.data,
      batchSize: batchSize ?? o.evalBatchSize,
      imageSize: imageSize ?? o.evalImageSize,
      cropPct: o.cropPct,
      interpolation: o.interpolation,
      dataBackend: o.dataBackend,
      workers: o.workers,
      prefetch: o.prefetch,
      exifOrientation: o.exifOrientation,
      maxPixels: o.maxPixels,
      ...(o.maxBad === null ? {} : { maxBad: o.maxBad }),
      ...(details === undefined ? {} : { details }),
      ...(signal === undefined ? {} : { signal }),
      ...(onProgress === undefined ? {} : { onProgress }),
    })
  }

  /** As `model.predict`, with the crop of this training. */
  async predict(images: ImageInput | readonly ImageInput[], options: PredictOptions = {}): Promise<PredictionResult[]> {
    const { evalImageSize, cropPct, interpolation } = this.options
    return collect(predictStream(this.model, asList(images), { imageSize: evalImageSize, cropPct, interpolation, ...options }))
  }

  /** Stops a run and waits for it. The model stays open: who made it closes it. */
  async close(): Promise<void> {
    if (this.closed) return
    this.closed = true
    const { run } = this
    if (run) {
      run.stop('closed', 'interrupted')
      await run.settled
    }
    this.hub.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  private async findCheckpoint(name: string): Promise<string> {
    if (name !== 'best' && name !== 'last') return name
    const { outDir } = this.given
    if (outDir === undefined) throw new EffnetError('EFF_INVALID_ARGUMENT', `checkpoint: '${name}' needs outDir`)
    const folder = new RunFolder(outDir)
    const found = await findFolder(folder[name])
    if (found) return found
    throw new EffnetError('EFF_CKPT_MISSING', `${folder[name]}: no complete checkpoint`)
  }
}
