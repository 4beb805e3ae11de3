/** Validation within a run: the weights, then their moving average where the run keeps one. */
import type { NonFinite } from '../binding.js'
import { EffnetError } from '../errors.js'
import type { Model } from '../model.js'
import type { Evaluator, Watch } from './evaluate.js'
import type { Progress } from './progress.js'
import type { EvaluateDetails, EvaluateResult, Metrics, ResolvedOptions, ValidationEvent, ValidationStepEvent } from './types.js'

/** What it needs of the run that it is a part of. */
export interface ValidationHost {
  readonly model: Model
  readonly options: ResolvedOptions
  readonly progress: Progress
  /** Aborted by a stop that does not wait for the end of a validation. */
  readonly signal: AbortSignal
  onValidationStart(): Promise<void>
  onValidationBatch(event: ValidationStepEvent): Promise<void>
  onValidationEnd(event: ValidationEvent): Promise<void>
  /** The error to throw where the weights of this step give NaN or infinity. */
  unsound(what: string, first: NonFinite | null): Promise<EffnetError>
}

export class Validation {
  /** Of the weights at the last whole validation. */
  details: EvaluateDetails | undefined
  /** The step of those weights. */
  step: number | undefined

  constructor(
    private readonly host: ValidationHost,
    private readonly evaluator: Evaluator,
  ) {}

  /** Undefined when the run was told to stop meanwhile. */
  async run(epoch: number): Promise<Metrics | undefined> {
    const { host } = this
    await host.onValidationStart()
    const result = await this.measure(true, epoch)
    if (!result) return undefined
    const metrics: Metrics = { ...result.metrics }
    if (host.options.ema > 0) {
      const average = await this.measureAverage(epoch)
      if (!average) return undefined
      for (const [key, value] of Object.entries(average.metrics)) metrics[key.replace('val/', 'val_ema/')] = value
    }
    this.details = result.details
    const { progress, options } = host
    this.step = progress.step
    const best = progress.improves(metrics, options.checkpoint)
    await host.onValidationEnd({ type: 'validation', epoch, step: progress.step, metrics, best, elapsedMs: result.elapsedMs })
    return metrics
  }

  private async measureAverage(epoch: number): Promise<EvaluateResult | undefined> {
    const { model } = this.host
    await model.useAverage(true)
    try {
      return await this.measure(false, epoch)
    } finally {
      await model.useAverage(false)
    }
  }

  private async measure(details: boolean, epoch: number): Promise<EvaluateResult | undefined> {
    const { host } = this
    const watch: Watch = {
      onProgress: (done, total) => host.onValidationBatch({ type: 'validation-step', epoch, done, total }),
      signal: host.signal,
    }
    try {
      return await this.evaluator.run(details, watch)
    } catch (cause) {
      if (!(cause instanceof EffnetError) || cause.code !== 'EFF_NAN') throw cause
      throw await host.unsound('validation loss is not finite', cause.details['first'] as NonFinite | null)
    }
  }
}
