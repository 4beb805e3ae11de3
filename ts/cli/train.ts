import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ImageFolder } from '../data/types.js'
import { EffnetError } from '../errors.js'
import type { Model } from '../model.js'
import type { ModelJson } from '../train/checkpoint.js'
import type { Trainer } from '../train/trainer.js'
import type { FitResult, TrainerOptions } from '../train/types.js'
import { type Call, defineVerb } from './call.js'
import { describeError } from './errors_ui.js'
import { EXIT } from './exit.js'
import type { Io } from './io.js'
import { checkDeviceOption, engineOptions, headerLine, modelLine } from './model_source.js'
import { shown } from './paths_ui.js'
import { programName } from './program.js'
import { isGpuFault, rerun } from './rerun.js'
import { checkOut, runTarget } from './run_target.js'
import { handleSignals } from './signals.js'
import { TRAIN, type TrainValues } from './train_options.js'
import { endBlock, TrainUi } from './train_ui.js'
import { grouped, type Ui } from './ui.js'

/** Leaves undefined values out, as exact optional properties want it. */
function given<T extends object>(values: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(values).filter(([, v]) => v !== undefined)) as {
    [K in keyof T]?: Exclude<T[K], undefined>
  }
}

function need(value: string | undefined, flag: string, hint: string): string {
  if (value !== undefined) return value
  throw new EffnetError('EFF_CONFIG_VALUE', `effnet train needs ${flag}`, { hint })
}

const oneClass = ({ root, classes, train }: ImageFolder): EffnetError =>
  new EffnetError(
    'EFF_DATA_LABEL',
    `${shown(root)}: one class only ("${classes[0]}", ${train.length} image${train.length === 1 ? '' : 's'}): nothing can be learned`,
    { hint: 'a folder for each class, two at least: DIR/train/cat/1.jpg and DIR/train/dog/1.jpg' },
  )

async function openData(o: TrainValues, dir: string, ui: Ui): Promise<ImageFolder> {
  const { imageFolder } = await import('../data/image_folder.js')
  const data = await imageFolder(dir, given({ valSplit: o.valSplit, seed: o.seed }))
  if (data.classes.length === 1) throw oneClass(data)
  const val = data.val ? `val ${grouped(data.val.length)}` : 'no validation images'
  ui.line(
    `data   ${shown(data.train.root)} ${grouped(data.train.length)} images, ${grouped(data.classes.length)} classes · ${val}`,
  )
  if (!data.val)
    ui.warn('no-val', `${shown(data.root)} has no val/: accuracy will not be measured`, '--val-split 0.1 holds a tenth out')
  return data
}

/** The weights to fine-tune, as `createModel` takes them; undefined from scratch. */
const startOf = (o: TrainValues): string | true | undefined => o.weights ?? (o.pretrained ? true : undefined)

/** A run that goes on takes its weights and whose conventions they follow from the checkpoint: the file it began with may be gone. */
async function openModel(
  o: TrainValues,
  name: string,
  data: ImageFolder,
  resumed: ModelJson | undefined,
  ui: Ui,
): Promise<Model> {
  const { createModel } = await import('../model.js')
  const dialect = resumed && resumed.config.dialect !== 'timm' ? resumed.config.dialect : undefined
  const model = await createModel(name, {
    classes: data.classes,
    ...given({ pretrained: resumed ? undefined : startOf(o), compat: o.compat ?? dialect, imageSize: o.imageSize, seed: o.seed }),
    ...engineOptions(o),
  })
  try {
    if (o.freeze !== undefined) {
      model.freeze(o.freeze)
      if (model.summary().trainableParams === 0) {
        throw new EffnetError('EFF_CONFIG_VALUE', 'every parameter is frozen: nothing is left to train', {
          hint: '--freeze backbone',
        })
      }
    }
  } catch (cause) {
    await model.close()
    const { message, hint } = cause as EffnetError
    throw new EffnetError('EFF_CONFIG_VALUE', `--freeze ${o.freeze}: ${message}`, hint === undefined ? {} : { hint })
  }
  ui.line(await modelLine(model, o.imageSize ?? model.config.imageSize, resumed && 'weights of the checkpoint'))
  if (o.freeze !== undefined) {
    const { params, trainableParams } = model.summary()
    ui.line(`frozen ${o.freeze}: ${grouped(params - trainableParams)} of ${grouped(params)} parameters keep their values`)
  }
  return model
}

function trainerOptions(o: TrainValues, model: Model, outDir: string, config: Record<string, unknown>): TrainerOptions {
  return {
    model,
    outDir,
    config,
    command: ['effnet', ...process.argv.slice(2)],
    recipe: startOf(o) === undefined ? 'scratch' : 'finetune',
    ...given({
      optimizer: o.optimizer,
      lr: o.lr,
      weightDecay: o.weightDecay,
      schedule: o.schedule,
      warmupEpochs: o.warmupEpochs,
      labelSmoothing: o.labelSmoothing,
      ema: o.ema === 0 ? false : o.ema,
      batchSize: o.batchSize,
      imageSize: o.imageSize,
      augment: o.cropScale === undefined ? undefined : { scale: [o.cropScale, 1] as const },
      cropPct: o.cropPct,
      dropRate: o.dropRate,
      dropPathRate: o.dropPathRate,
      clipNorm: o.clipNorm,
      accumulate: o.accumulate,
      maxEpochs: o.epochs,
      maxSteps: o.maxSteps,
      maxTime: o.maxTime,
      seed: o.seed,
      logEvery: o.logEvery,
      checkpoint: o.checkpointEvery === undefined ? undefined : { everySteps: o.checkpointEvery },
      dataBackend: o.dataBackend,
      workers: o.workers,
      maxBad: o.maxBad,
      exifOrientation: o.exif === undefined ? undefined : o.exif === 'on',
    }),
  }
}

/** The last line of `--json`. */
const resultObject = (r: FitResult): Record<string, unknown> => ({
  status: r.status,
  reason: r.reason,
  epoch: r.epoch,
  step: r.step,
  metrics: r.metrics,
  ...(r.best ? { best: r.best } : {}),
  images_per_s: r.imagesPerS,
  data_wait: r.dataWait,
  elapsed_s: r.elapsedMs / 1e3,
  bad_files: r.badFiles.length,
  ...(r.cpuDecodedFiles === undefined ? {} : { cpu_decoded_files: r.cpuDecodedFiles }),
  ...(r.unlockedBytes === undefined ? {} : { unlocked_bytes: r.unlockedBytes }),
  checkpoint: r.checkpoint ?? null,
  ...(r.bestCheckpoint ? { best_checkpoint: r.bestCheckpoint } : {}),
  ...(r.outDir ? { out: r.outDir } : {}),
})

interface Fit {
  model: Model
  data: ImageFolder
  outDir: string
  resume: string | undefined
  config: Record<string, unknown>
}

const GRACE_SECONDS = 25
/** What a run leaves behind when it is ended at once is waited for this long: a disk or a reader that does not answer must not keep it. */
const LAST_WORDS_MS = 1000

/** Not by `process.exit`, which waits for the engine's threads: an op on a GPU may never end. */
async function endProcess(exitCode: number): Promise<never> {
  const { binding } = await import('../binding.js')
  try {
    return binding().endProcess(exitCode)
  } catch {
    // Without the addon there is no engine.
    return process.exit(exitCode)
  }
}

/** Signals from the start of the command: before there is a trainer they wait for it. */
class Interrupts {
  readonly release: () => void
  /** The run began with a checkpoint. */
  resumed = false
  /** It has written one itself. */
  wrote = false
  private trainer: Trainer | undefined
  private reason: string | undefined
  private graceMs: number

  constructor({ io, ui }: { io: Io; ui: Ui }, grace: number | undefined) {
    this.graceMs = 1e3 * (grace ?? GRACE_SECONDS)
    const stop = (signal: string) => {
      this.reason = signal
      this.trainer?.stop(signal)
    }
    const now = (exitCode: number, what: string) => {
      const reason = `${what}; ${this.resumed || this.wrote ? 'what was saved before is kept' : 'nothing was saved before'}`
      ui.error(`${reason}\n`)
      const written = [this.trainer?.conclude(exitCode, reason), io.stdout.flushed(), io.stderr.flushed()]
      void Promise.race([Promise.allSettled(written), sleep(LAST_WORDS_MS)]).then(() => endProcess(exitCode))
    }
    const checkpoint = () => this.trainer?.requestCheckpoint()
    const reopenLogs = () => this.trainer?.reopenLogs()
    this.release = handleSignals({ stop, checkpoint, reopenLogs, note: (text) => ui.line(text), now }, () => this.graceMs)
  }

  /** Of a run that goes on it is known later than the handlers are needed. */
  set grace(seconds: number | undefined) {
    this.graceMs = 1e3 * (seconds ?? GRACE_SECONDS)
  }

  get stopped(): boolean {
    return this.reason !== undefined
  }

  attach(trainer: Trainer): void {
    this.trainer = trainer
    if (this.reason !== undefined) trainer.stop(this.reason)
  }
}

/** `reason` of a run that a signal ended is the signal's name. */
function exitOf({ status, reason }: FitResult, o: TrainValues): number {
  if (status === 'finished') return EXIT.ok
  return o.exit143OnSigterm && reason === 'SIGTERM' ? EXIT.killed : EXIT.interrupted
}

async function runFit(o: TrainValues, fit: Fit, interrupts: Interrupts, ui: Ui): Promise<FitResult> {
  const { model, data, outDir, resume, config } = fit
  const { Trainer } = await import('../train/trainer.js')
  const trainer = new Trainer(trainerOptions(o, model, outDir, config))
  const console = new TrainUi(ui)
  const events = trainer.events()
  const reading = (async () => {
    for await (const event of events) {
      if (event.type === 'checkpoint') interrupts.wrote = true
      console.on(event)
    }
  })()
  // Awaited when the run has ended; meanwhile a failure is not unhandled.
  reading.catch(() => undefined)
  interrupts.attach(trainer)
  try {
    const result = await trainer.fit({ train: data.train, ...given({ val: data.val, resume }) })
    await reading
    await trainer.conclude(exitOf(result, o))
    return result
  } catch (error) {
    // What was said before the error is shown before it.
    await new Promise((resolve) => setImmediate(resolve))
    await events.return?.()
    // The error that ended the run is the one to tell.
    await trainer.conclude(describeError(error).exitCode).catch(() => undefined)
    throw error
  } finally {
    ui.warningsLeft()
  }
}

/** The next run would take the run folder, or what is in it, for a class. */
function refuseOutInData(outDir: string, dataDir: string): void {
  const data = path.resolve(dataDir)
  const inside = path.relative(data, outDir)
  if (inside === '..' || inside.startsWith(`..${path.sep}`)) return
  const where = inside === '' ? 'is' : 'lies in'
  throw new EffnetError('EFF_CONFIG_VALUE', `the run folder ${outDir} ${where} the data folder ${dataDir}, which is only read`, {
    hint: `--out ${path.join(path.dirname(data), 'runs', path.basename(outDir))}`,
  })
}

async function run(call: Call<typeof TRAIN>): Promise<number> {
  const interrupts = new Interrupts(call, call.options.grace)
  try {
    return await train(call, interrupts)
  } finally {
    interrupts.release()
  }
}

async function train({ options, io, ui }: Call<typeof TRAIN>, interrupts: Interrupts): Promise<number> {
  await checkDeviceOption(options.device)
  if (options.pretrained && options.weights !== undefined) {
    throw new EffnetError('EFF_CONFIG_VALUE', '--pretrained and --weights both say what to start from', {
      hint: `--weights ${options.weights} alone, or --pretrained alone`,
    })
  }
  const target = await runTarget(options)
  const o = target.options
  interrupts.grace = o.grace
  const dir = need(o.data, '--data', '--data DIR   holds train/ and val/, each with a folder a class')
  const name = need(o.model, '--model', '--model NAME   e.g. --model efficientnet_b0 (effnet models list names all)')
  if (o.maxTime !== undefined) {
    const { durationMs } = await import('../train/duration.js')
    durationMs(o.maxTime, '--max-time')
  }
  const { getModelConfig } = await import('../nn/index.js')
  getModelConfig(name)
  ui.line(await headerLine(o, ui))
  if (o.out !== undefined) await checkOut(path.resolve(o.out), target.resume !== undefined)
  const data = await openData(o, dir, ui)
  refuseOutInData(target.planned(name), dir)
  const { peekResume } = await import('../train/resume.js')
  const from = target.resume === 'auto' ? target.planned(name) : target.resume
  const resumed = from === undefined ? undefined : await peekResume(from)
  interrupts.resumed = resumed !== undefined
  let outDir = ''
  try {
    const model = await openModel(o, name, data, resumed, ui)
    try {
      outDir = await target.outDir(name)
      const config = {
        ...given({ ...o, resume: undefined }),
        data: path.resolve(dir),
        ...(o.weights === undefined ? {} : { weights: path.resolve(o.weights) }),
      }
      const result = await runFit(o, { model, data, outDir, resume: target.resume, config }, interrupts, ui)
      endBlock(ui, result, {
        data: dir,
        val: data.val && shown(data.val.root),
        model: name,
        resume: ['train', '--resume', shown(outDir)],
        program: programName(io.env),
      })
      ui.object({ result: resultObject(result) })
      return exitOf(result, o)
    } finally {
      await model.close()
    }
  } catch (error) {
    if (isGpuFault(error)) {
      const named = target.resume === 'auto' || target.resume === outDir ? undefined : target.resume
      const run = { outDir, from: named, saved: interrupts.wrote }
      const argv = process.argv.slice(2)
      await rerun(run, o, error, { env: io.env, io, ui, argv, stopped: () => interrupts.stopped })
    }
    throw error
  }
}

export const verb = defineVerb(
  {
    name: 'train',
    summary: 'train, or fine-tune from weights, on a folder of images',
    examples: [
      'effnet train --data photos --model tf_efficientnet_b0 --pretrained --epochs 4 --out runs/first',
      'effnet train --resume runs/first',
    ],
    options: TRAIN,
    notes: ['Ctrl-C, SIGTERM: checkpoint, exit 75; Ctrl-C twice: 130. SIGUSR2: checkpoint. SIGHUP: reopen logs.'],
  },
  run,
)
