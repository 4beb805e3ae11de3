/** What a training run shows: plan, live line, a row an epoch, checkpoints in `-v`, warnings once each. */

import path from 'node:path'
import { cpuDecodedText, unlockedText } from '../machine_text.js'
import type {
  CheckpointEvent,
  EpochEvent,
  FitResult,
  ResolvedOptions,
  StartEvent,
  StepEvent,
  TrainerEvent,
  ValidationStepEvent,
  WarningEvent,
} from '../train/types.js'
import { Eta } from './eta.js'
import { tellMeasuring } from './model_source.js'
import { commandLine, shown } from './paths_ui.js'
import { bar, compact, duration, type Field, grouped, mebibytes, type Ui } from './ui.js'
import { userWords } from './user_words.js'

const BAR_CELLS = 20
const ESTIMATE_AFTER = 20

const TITLES = ['epoch', 'loss', 'top1', 'v.loss', 'v.top1', 'v.top5', 'lr', 'img/s', 'wait%', 'time', 'left']
const WIDTHS = [7, 6, 5, 6, 6, 6, 8, 7, 5, 7, 7]

const row = (cells: readonly string[]): string => cells.map((c, i) => c.padStart(WIDTHS[i]!)).join(' ')

/** A result that was read back from JSON has null where there was no finite number. */
const number = (n: number | null | undefined, digits: number): string =>
  n === undefined || n === null || Number.isNaN(n) ? '-' : n.toFixed(digits)

function planLine(o: ResolvedOptions, e: StartEvent): string {
  const { optimizer, schedule, augment } = o
  const warmUp = schedule.warmupEpochs > 0 ? `, ${compact(schedule.warmupEpochs)} warm-up` : ''
  return [
    `${o.maxEpochs} epoch${o.maxEpochs === 1 ? '' : 's'} × ${e.stepsPerEpoch} steps`,
    ...(e.totalSteps < o.maxEpochs * e.stepsPerEpoch ? [`ends after ${grouped(e.totalSteps)} steps`] : []),
    `batch ${o.batchSize}`,
    `${optimizer.name} lr ${compact(optimizer.lr)} ${schedule.name}${warmUp}`,
    `weight decay ${compact(optimizer.weightDecay)}`,
    `label smoothing ${compact(o.labelSmoothing)}`,
    o.ema > 0 ? `EMA ${o.ema}` : 'EMA off',
    `crop ${augment.scale[0]}-${augment.scale[1]} ${augment.interpolation}${augment.hflip > 0 ? ' + flip' : ''}`,
    `drop ${compact(o.dropRate)}/${compact(o.dropPathRate)}`,
    `seed ${o.seed}`,
  ].join(' · ')
}

export class TrainUi {
  readonly #ui: Ui
  readonly #eta = new Eta()
  #start: StartEvent | undefined
  #last: StepEvent | undefined
  #estimated = false
  #headed = false

  constructor(ui: Ui) {
    this.#ui = ui
  }

  on(event: TrainerEvent): void {
    switch (event.type) {
      case 'kernels':
        tellMeasuring(event, this.#ui)
        this.#ui.object({
          event: 'kernels',
          plan: event.plan,
          ops: event.ops,
          ...('seconds' in event && { seconds: event.seconds }),
        })
        break
      case 'start':
        this.#onStart(event)
        break
      case 'step':
        this.#onStep(event)
        break
      case 'validation-step':
        this.#onValidationStep(event)
        break
      case 'epoch':
        this.#onEpoch(event)
        break
      case 'checkpoint':
        this.#onCheckpoint(event)
        break
      case 'warning':
        this.#onWarning(event)
        break
      default:
        break
    }
  }

  #onWarning({ code, message, hint }: WarningEvent): void {
    const text = userWords(message)
    // Codes of errors are for looking up; the others only count repeats.
    this.#ui.warn(code, code.startsWith('EFF_') ? `${code}  ${text}` : text, hint && userWords(hint))
    this.#ui.object({ event: 'warning', code, message: text })
  }

  #onStart(event: StartEvent): void {
    this.#start = event
    this.#ui.line(`plan   ${planLine(event.options, event)}`)
    if (event.resumed) {
      const { epoch, step, path: from } = event.resumed
      this.#ui.line(`resume ${shown(from)} · epoch ${epoch + 1}, step ${grouped(step)}`)
    }
    this.#ui.object({
      event: 'start',
      steps_per_epoch: event.stepsPerEpoch,
      total_steps: event.totalSteps,
      train_images: event.trainImages,
      val_images: event.valImages,
      classes: event.classes.length,
      ...(event.resumed ? { resumed: event.resumed } : {}),
    })
  }

  #onStep(event: StepEvent): void {
    this.#last = event
    const now = performance.now()
    this.#eta.step(now)
    if (event.stepInEpoch === event.stepsPerEpoch) this.#eta.epochEnd(now)
    const every = this.#start?.options.logEvery ?? 50
    const due = event.step % every === 0
    if (due) {
      this.#ui.object({
        event: 'step',
        epoch: event.epoch,
        step: event.step,
        loss: event.loss,
        lr: event.lr,
        images_per_s: event.imagesPerS,
        data_wait: event.dataWait,
      })
    }
    this.#ui.progress(() => this.#stepFields(event), due)
    if (!this.#estimated && this.#eta.measured >= ESTIMATE_AFTER) {
      this.#estimated = true
      const left = this.#left(event)
      if (left !== undefined && !this.#ui.live) {
        const memory = mebibytes(process.memoryUsage.rss())
        this.#ui.line(`time   about ${duration(event.elapsedMs / 1e3 + left)} in all, validation not counted · memory ${memory}`)
      }
    }
  }

  #left(event: StepEvent): number | undefined {
    return this.#eta.seconds(event.totalSteps - event.step, Math.ceil((event.totalSteps - event.step) / event.stepsPerEpoch))
  }

  #stepFields(e: StepEvent): Field[] {
    const share = e.stepInEpoch / e.stepsPerEpoch
    const epochLeft = this.#eta.seconds(e.stepsPerEpoch - e.stepInEpoch, 0)
    const left = this.#left(e)
    const eta = epochLeft === undefined || left === undefined ? '' : `eta ${duration(epochLeft)} / ${duration(left)}`
    return [
      { text: this.#epochOf(e.epoch), rank: 0 },
      { text: bar(share, BAR_CELLS), rank: 95 },
      { text: `${e.stepInEpoch}/${e.stepsPerEpoch}`, rank: 4 },
      { text: `loss ${number(e.meanLoss, 3)}`, rank: 1 },
      { text: `top1 ${number(e.top1, 1)}`, rank: 5 },
      { text: `lr ${compact(e.lr)}`, rank: 7 },
      ...(e.lossScale === undefined ? [] : [{ text: `scale ${e.lossScale}, ${e.skippedSteps} skipped`, rank: 10 }]),
      { text: `${grouped(e.imagesPerS)} img/s`, rank: 2 },
      { text: `wait ${(100 * e.dataWait).toFixed(1)} %`, rank: 6 },
      { text: mebibytes(process.memoryUsage.rss()), rank: 9 },
      { text: duration(e.elapsedMs / 1e3), rank: 8 },
      { text: eta, rank: 3 },
    ]
  }

  #epochOf(epoch: number): string {
    const total = this.#start?.options.maxEpochs ?? 0
    return `${String(epoch).padStart(String(total).length + 1)}/${total}`
  }

  #onValidationStep(event: ValidationStepEvent): void {
    this.#ui.progress(() => [
      { text: this.#epochOf(event.epoch), rank: 0 },
      { text: bar(event.done / Math.max(1, event.total), BAR_CELLS), rank: 95 },
      { text: `validation ${grouped(event.done)}/${grouped(event.total)}`, rank: 1 },
    ])
  }

  #onEpoch(event: EpochEvent): void {
    const { metrics: m, best } = event
    this.#ui.object({ event: 'epoch', epoch: event.epoch, step: event.step, metrics: m, best })
    if (!this.#headed) {
      this.#headed = true
      this.#ui.line(this.#ui.paint.dim(row(TITLES)))
    }
    const last = this.#last
    const left = last === undefined ? undefined : this.#left(last)
    const top1 = `${number(m['val/top1'], 1)}${best ? '*' : ' '}`
    const cells = [
      this.#epochOf(event.epoch),
      number(m['train/loss'], 3),
      number(m['train/top1'] ?? last?.top1, 1),
      number(m['val/loss'], 3),
      top1,
      number(m['val/top5'], 1),
      last === undefined ? '-' : compact(last.lr),
      last === undefined ? '-' : grouped(last.imagesPerS),
      last === undefined ? '-' : (100 * last.dataWait).toFixed(1),
      duration(event.elapsedMs / 1e3),
      left === undefined ? '-' : duration(left),
    ]
    const text = row(cells)
    this.#ui.line(best ? this.#ui.paint.green(text) : text)
  }

  #onCheckpoint(event: CheckpointEvent): void {
    const kinds = event.kinds.join(', ')
    this.#ui.object({ event: 'checkpoint', path: event.path, kinds: event.kinds, epoch: event.epoch, step: event.step })
    if (this.#ui.verbosity > 0) {
      this.#ui.line(
        `saved  ${shown(event.path)} (${kinds}) · step ${event.step} · ${mebibytes(event.bytes)} in ${Math.round(event.ms)} ms`,
      )
    }
  }
}

export interface EndContext {
  data: string
  val: string | undefined
  model: string
  /** How this run is continued: the words after the program's name. */
  resume: readonly string[]
  /** How the program is called here. */
  program: string
}

/** The end of a run: best, speed, files, and what to run next. */
export function endBlock(ui: Ui, result: FitResult, context: EndContext): void {
  const { paint } = ui
  const finished = result.status === 'finished'
  const speed = [
    duration(result.elapsedMs / 1e3),
    `${grouped(result.imagesPerS)} img/s`,
    `wait ${(100 * result.dataWait).toFixed(1)} %`,
    `peak ${mebibytes(process.resourceUsage().maxRSS * 1024)}`,
  ].join(' · ')
  const top1 = result.metrics['val/top1']
  const metrics = top1 === undefined ? '' : `val/top1 ${number(top1, 2)} % · val/loss ${number(result.metrics['val/loss'], 4)} · `
  const head = finished ? paint.green('done') : paint.yellow('stopped')
  const done = `${head}   ${finished ? '' : `${result.reason} · `}${metrics}${speed}`
  if (ui.json) ui.line(done)
  else ui.answer(done)
  if (result.best) {
    const { metric, value, epoch } = result.best
    ui.line(
      `best   ${metric} ${compact(value)} in epoch ${epoch}${result.bestCheckpoint ? ` · ${shown(result.bestCheckpoint)}` : ''}`,
    )
  }
  const bad = result.badFiles.length
  if (bad > 0) {
    const list = result.outDir ? `: ${shown(path.join(result.outDir, 'bad_files.csv'))}` : ''
    ui.line(`bad    ${grouped(bad)} ${bad === 1 ? 'file' : 'files'} could not be read${list}`)
  }
  if (result.cpuDecodedFiles) ui.line(`gpu    ${cpuDecodedText(result.cpuDecodedFiles, grouped(result.cpuDecodedFiles))}`)
  if (result.unlockedBytes) ui.line(`host   ${unlockedText(result.unlockedBytes)}`)
  const files = [result.report, result.outDir && path.join(result.outDir, 'metrics.csv'), result.checkpoint].filter(
    (f): f is string => Boolean(f),
  )
  if (files.length > 0) ui.line(`files  ${files.map(shown).join('  ')}`)
  const checkpoint = result.bestCheckpoint ?? result.checkpoint
  if (!checkpoint) return
  const where = shown(checkpoint)
  const command = (words: readonly string[]): string => `${context.program} ${commandLine(words)}`
  const next = finished
    ? [
        command(['predict', '--checkpoint', where, context.val ?? context.data]),
        command(['eval', '--data', context.data, '--checkpoint', where]),
        command(['bench', '--model', context.model, '--mode', 'infer', '--batch-size', '1']),
      ]
    : [command(context.resume)]
  next.forEach((line, i) => {
    ui.line(`${i === 0 ? 'next ' : '     '}  ${paint.cyan(line)}`)
  })
}
