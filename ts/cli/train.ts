import path from 'node:path'
import type { ImageFolder } from '../data/types.js'
import { EffnetError } from '../errors.js'
import type { Model } from '../model.js'
import type { FitResult, TrainerOptions } from '../train/types.js'
import { type Call, defineVerb } from './call.js'
import { EXIT } from './exit.js'
import { checkDeviceOption, engineOptions, headerLine, modelLine } from './model_source.js'
import { shown } from './paths_ui.js'
import { programName } from './program.js'
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

async function openModel(o: TrainValues, name: string, data: ImageFolder, ui: Ui): Promise<Model> {
  const { createModel } = await import('../model.js')
  const model = await createModel(name, {
    classes: data.classes,
    ...given({ pretrained: o.weights, compat: o.compat, imageSize: o.imageSize, seed: o.seed }),
    ...engineOptions(o),
  })
  try {
    if (o.freeze !== undefined) model.freeze(o.freeze)
  } catch (cause) {
    await model.close()
    const { message, hint } = cause as EffnetError
    throw new EffnetError('EFF_CONFIG_VALUE', `--freeze ${o.freeze}: ${message}`, hint === undefined ? {} : { hint })
  }
  ui.line(await modelLine(model, o.imageSize ?? model.config.imageSize))
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
      maxEpochs: o.epochs,
      maxSteps: o.maxSteps,
      maxTime: o.maxTime,
      seed: o.seed,
      deterministic: o.deterministic ? (true as const) : undefined,
      logEvery: o.logEvery,
      checkpoint: o.checkpointEvery === undefined ? undefined : { everySteps: o.checkpointEvery },
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

async function runFit(o: TrainValues, { model, data, outDir, resume, config }: Fit, ui: Ui): Promise<FitResult> {
  const { Trainer } = await import('../train/trainer.js')
  const trainer = new Trainer(trainerOptions(o, model, outDir, config))
  const console = new TrainUi(ui)
  const events = trainer.events()
  const reading = (async () => {
    for await (const event of events) console.on(event)
  })()
  // Awaited when the run has ended; meanwhile a failure is not unhandled.
  reading.catch(() => undefined)
  const release = handleSignals(
    {
      stop: (signal) => trainer.stop(signal),
      checkpoint: () => trainer.requestCheckpoint(),
      note: (text) => ui.line(text),
      now: (exitCode, reason) => {
        ui.error(`${reason}\n`)
        process.exit(exitCode)
      },
    },
    1e3 * (o.grace ?? 25),
  )
  try {
    const result = await trainer.fit({ train: data.train, ...given({ val: data.val, resume }) })
    await reading
    return result
  } catch (error) {
    // What was said before the error is shown before it.
    await new Promise((resolve) => setImmediate(resolve))
    await events.return?.()
    throw error
  } finally {
    release()
    ui.warningsLeft()
  }
}

/** The next run would take the run folder for a class. */
function refuseOutInData(outDir: string, dataDir: string): void {
  const inside = path.relative(path.resolve(dataDir), outDir)
  if (inside === '' || inside.startsWith('..') || path.isAbsolute(inside)) return
  throw new EffnetError('EFF_CONFIG_VALUE', `--out ${outDir} lies in the data folder ${dataDir}, which is only read`, {
    hint: `--out ${path.join(path.dirname(path.resolve(dataDir)), 'runs', path.basename(outDir))}`,
  })
}

async function run({ options, io, ui }: Call<typeof TRAIN>): Promise<number> {
  await checkDeviceOption(options.device)
  const target = await runTarget(options)
  const o = target.options
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
  const outDir = await target.outDir(name)
  refuseOutInData(outDir, dir)
  const model = await openModel(o, name, data, ui)
  try {
    const config = {
      ...given({ ...o, resume: undefined }),
      data: path.resolve(dir),
      ...(o.weights === undefined ? {} : { weights: path.resolve(o.weights) }),
    }
    const result = await runFit(o, { model, data, outDir, resume: target.resume, config }, ui)
    endBlock(ui, result, {
      data: dir,
      val: data.val && shown(data.val.root),
      model: name,
      resume: ['train', '--resume', shown(outDir)],
      program: programName(io.env),
    })
    ui.object({ result: resultObject(result) })
    return result.status === 'finished' ? EXIT.ok : EXIT.interrupted
  } finally {
    await model.close()
  }
}

export const verb = defineVerb(
  {
    name: 'train',
    summary: 'train, or fine-tune with --weights, on a folder of images',
    examples: [
      'effnet train --data photos --model tf_efficientnet_b0 --weights b0.safetensors --epochs 4 --out runs/first',
      'effnet train --resume runs/first',
    ],
    options: TRAIN,
    notes: [
      'Ctrl-C, SIGTERM: checkpoint at this step, exit 75 (resume me); a second Ctrl-C: exit 130. SIGUSR2: checkpoint, go on.',
    ],
  },
  run,
)
