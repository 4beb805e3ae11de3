/** Calls callbacks in order, and the built-in ones. */
import { EffnetError } from '../errors.js'
import { csvLine } from './files.js'
import { metricNames, noSuchMetric } from './metric_names.js'
import type { RunFolder } from './run_folder.js'
import type { Callback, EpochEvent, StartEvent, StepEvent, TrainerContext } from './types.js'

type Hook = Exclude<keyof Callback, 'name' | 'state' | 'load'>
type HookArgs<H extends Hook> = Required<Callback>[H] extends (ctx: TrainerContext, ...args: infer A) => void | Promise<void>
  ? A
  : never

export class CallbackList {
  constructor(private readonly callbacks: readonly Callback[]) {
    const names = callbacks.map((c) => c.name)
    const twice = names.find((name, i) => names.indexOf(name) !== i)
    if (twice !== undefined) {
      throw new EffnetError('EFF_CONFIG_VALUE', `two callbacks are named "${twice}"`, { hint: 'give each its own name' })
    }
  }

  async call<H extends Hook>(hook: H, ctx: TrainerContext, ...args: HookArgs<H>): Promise<void> {
    for (const callback of this.callbacks) {
      const method = callback[hook] as ((ctx: TrainerContext, ...args: unknown[]) => void | Promise<void>) | undefined
      if (method) await method.call(callback, ctx, ...args)
    }
  }

  /** Whether any callback has the hook: a step need not pay for what nobody hears. */
  has(hook: Hook): boolean {
    return this.callbacks.some((c) => c[hook] !== undefined)
  }

  state(): Record<string, unknown> {
    const states: Record<string, unknown> = {}
    for (const callback of this.callbacks) if (callback.state) states[callback.name] = callback.state()
    return states
  }

  load(states: Readonly<Record<string, unknown>>): void {
    for (const callback of this.callbacks) {
      if (callback.load && callback.name in states) callback.load(states[callback.name])
    }
  }
}

export interface EarlyStoppingOptions {
  /** Default 'val/top1'. */
  monitor?: string
  /** Default: 'min' for losses, else 'max'. */
  mode?: 'max' | 'min'
  /** Epochs without improvement before the run ends; default 10. */
  patience?: number
  /** Smallest change that counts; default 0. */
  minDelta?: number
}

/** Ends the run when a metric has not improved for `patience` epochs in which it was measured. */
export class EarlyStopping implements Callback {
  readonly name = 'early-stopping'
  private readonly monitor: string
  private readonly sign: 1 | -1
  private readonly patience: number
  private readonly minDelta: number
  private best: number | null = null
  private waited = 0

  constructor(options: EarlyStoppingOptions = {}) {
    this.monitor = options.monitor ?? 'val/top1'
    const mode = options.mode ?? (this.monitor.endsWith('loss') ? 'min' : 'max')
    this.sign = mode === 'max' ? 1 : -1
    this.patience = options.patience ?? 10
    this.minDelta = options.minDelta ?? 0
  }

  onFitStart({ options }: TrainerContext, { valImages }: StartEvent): void {
    if (valImages > 0 || !this.monitor.startsWith('val')) return
    throw noSuchMetric('EarlyStopping: monitor', this.monitor, metricNames(false, options))
  }

  onEpochEnd(ctx: TrainerContext, event: EpochEvent): void {
    const value = event.metrics[this.monitor]
    // An epoch without validation has none of its metrics.
    const measured = 'val/loss' in event.metrics || !this.monitor.startsWith('val')
    if (value === undefined && this.best === null && measured)
      throw noSuchMetric('EarlyStopping: monitor', this.monitor, Object.keys(event.metrics))
    if (value === undefined || Number.isNaN(value)) return
    if (this.best === null || this.sign * (value - this.best) > this.minDelta) {
      this.best = value
      this.waited = 0
      return
    }
    this.waited++
    if (this.waited >= this.patience) ctx.stop('early-stop')
  }

  state(): unknown {
    return { best: this.best, waited: this.waited }
  }

  load(state: unknown): void {
    const { best, waited } = state as { best: number | null; waited: number }
    this.best = best
    this.waited = waited
  }
}

/** Where a run goes on: whole epochs and steps done. */
export interface ResumedAt {
  epoch: number
  step: number
}

const ROW_HEAD = ['epoch', 'step', 'time_s'] as const

/** metrics.csv: one row an epoch. A resume that measures more adds columns; those of rows before them are empty. */
export class CsvLogger implements Callback {
  readonly name = 'csv-logger'

  constructor(
    private readonly folder: RunFolder,
    private columns: readonly string[],
  ) {}

  /** A resumed run keeps the rows of its whole epochs: one that was written before a crash and not saved comes again. */
  async begin(resume: ResumedAt | undefined): Promise<void> {
    if (resume === undefined) return this.folder.start('metrics.csv', this.header)
    const kept = (line: string): boolean => !(Number(line.split(',')[0]) > resume.epoch)
    const before = ((await this.folder.firstLine('metrics.csv')) ?? '').split(',').slice(ROW_HEAD.length)
    const added = this.columns.filter((column) => !before.includes(column))
    if (before.length === 0) return this.folder.cut('metrics.csv', kept, this.header)
    this.columns = [...before, ...added]
    const empty = ','.repeat(added.length)
    await this.folder.cut('metrics.csv', kept, this.header, (line, n) => (n === 0 ? this.header.trimEnd() : `${line}${empty}`))
  }

  /** Nothing where the file is there. */
  async reopen(): Promise<void> {
    await this.folder.append('metrics.csv', '', this.header)
  }

  private get header(): string {
    return csvLine([...ROW_HEAD, ...this.columns])
  }

  async onEpochEnd(_ctx: TrainerContext, event: EpochEvent): Promise<void> {
    const time = (event.elapsedMs / 1000).toFixed(3)
    const cells = this.columns.map((column) => event.metrics[column])
    await this.folder.append('metrics.csv', csvLine([event.epoch, event.step, time, ...cells]), this.header)
  }
}

/** steps.jsonl: one object each `every` steps. */
export class JsonlLogger implements Callback {
  readonly name = 'jsonl-logger'

  constructor(
    private readonly folder: RunFolder,
    private readonly every: number,
  ) {}

  async begin(resume: ResumedAt | undefined): Promise<void> {
    if (resume === undefined) return this.folder.start('steps.jsonl', '')
    await this.folder.cut('steps.jsonl', (line) => stepOfLine(line) <= resume.step)
  }

  /** Nothing where the file is there. */
  async reopen(): Promise<void> {
    await this.folder.append('steps.jsonl', '')
  }

  async onStepEnd(_ctx: TrainerContext, event: StepEvent): Promise<void> {
    if (event.step % this.every !== 0 && event.stepInEpoch !== event.stepsPerEpoch) return
    const { epoch, step, loss, lr, imagesPerS, dataWait, elapsedMs, gradNorm, lossScale, skippedSteps } = event
    const line = {
      epoch,
      step,
      loss,
      lr,
      imagesPerS,
      dataWait,
      timeS: elapsedMs / 1000,
      ...(gradNorm === undefined ? {} : { gradNorm }),
      ...(lossScale === undefined ? {} : { lossScale, skippedSteps }),
    }
    await this.folder.append('steps.jsonl', `${JSON.stringify(line)}\n`)
  }
}

/** A line that is not JSON (a crash while it was written) lies behind every step. */
function stepOfLine(line: string): number {
  try {
    return (JSON.parse(line) as { step: number }).step
  } catch {
    return Number.POSITIVE_INFINITY
  }
}
