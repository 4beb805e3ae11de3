/** Where a run stands: what a checkpoint keeps beside weights and optimizer state. */

import type { TrainState } from './checkpoint.js'
import { RunningMetrics } from './metrics.js'
import type { CheckpointOptions, Metrics } from './types.js'

/** Metrics that were JSON, which has null for NaN. */
export const numbers = (metrics: Metrics): Metrics =>
  Object.fromEntries(Object.entries(metrics).map(([key, value]) => [key, value ?? Number.NaN]))

export class Progress {
  /** Whole epochs done; also the number, from 0, of the epoch in work. */
  epoch = 0
  step = 0
  stepInEpoch = 0
  /** Position in the order of the epoch in work. */
  sample = 0
  emaUpdates = 0
  /** Steps whose update was left out, over all processes. */
  skipped = 0
  metrics: Metrics = {}
  best: TrainState['best'] = null
  /** Of the epoch in work. */
  readonly running = new RunningMetrics()
  trainedMs = 0
  trainedImages = 0
  waitMs = 0
  private before = 0
  private readonly started = performance.now()

  /** Over all processes that worked on the run. */
  get elapsedMs(): number {
    return this.before + performance.now() - this.started
  }

  /** Of this process. */
  get processMs(): number {
    return performance.now() - this.started
  }

  get imagesPerS(): number {
    return this.trainedMs > 0 ? (1000 * this.trainedImages) / this.trainedMs : 0
  }

  get dataWait(): number {
    return this.trainedMs > 0 ? this.waitMs / this.trainedMs : 0
  }

  /** Whether these are better than the best before them, in what the checkpoints watch. */
  improves(metrics: Metrics, { monitor, mode }: Required<CheckpointOptions>): boolean {
    const value = metrics[monitor]
    if (value === undefined || !Number.isFinite(value)) return false
    if (this.best === null) return true
    return mode === 'max' ? value > this.best.value : value < this.best.value
  }

  /** True where they are; `epoch` is the number of the epoch in work, from 1. */
  noteBest(metrics: Metrics, options: Required<CheckpointOptions>, epoch: number): boolean {
    if (!this.improves(metrics, options)) return false
    const { monitor: metric } = options
    this.best = { metric, value: metrics[metric]!, epoch, step: this.step }
    return true
  }

  nextEpoch(): void {
    this.epoch++
    this.stepInEpoch = 0
    this.sample = 0
    this.running.load([])
  }

  state() {
    const { epoch, step, stepInEpoch, sample, emaUpdates, metrics, best, trainedMs, trainedImages, waitMs, elapsedMs } = this
    const running = this.running.state()
    return { epoch, step, stepInEpoch, sample, emaUpdates, metrics, best, trainedMs, trainedImages, waitMs, elapsedMs, running }
  }

  load(state: TrainState): void {
    this.epoch = state.epoch
    this.step = state.step
    this.stepInEpoch = state.stepInEpoch
    this.sample = state.sample
    this.emaUpdates = state.emaUpdates
    this.skipped = state.lossScale?.skipped ?? 0
    this.metrics = numbers(state.metrics)
    this.best = state.best
    this.trainedMs = state.trainedMs
    this.trainedImages = state.trainedImages
    this.waitMs = state.waitMs
    this.before = state.elapsedMs
    this.running.load(state.running)
  }
}
