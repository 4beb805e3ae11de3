/** Opens the model that --checkpoint, or --model and --weights, name. */
import { EffnetError } from '../errors.js'
import type { CreateModelOptions, Device, LoadModelOptions, Precision } from '../infer/types.js'
import type { Model } from '../model.js'
import type { Dialect } from '../nn/index.js'
import type { Measuring } from '../runtime/tuning.js'
import { shown } from './paths_ui.js'
import type { Ui } from './ui.js'

/** What `effnet predict` and `effnet bench` run where nothing else is asked for. */
export const DEFAULT_MODEL = 'tf_efficientnet_b0'

export interface EngineValues {
  precision: Precision | undefined
  device: string | undefined
  threads: number | undefined
  deterministic: boolean
  memoryLimit: string | undefined
}

export interface WeightsValues extends EngineValues {
  model: string | undefined
  weights: string | undefined
  checkpoint: string | undefined
  compat: Dialect | undefined
  numClasses: number | undefined
}

/** Options of `createModel` and `loadModel` that every verb has. */
export const engineOptions = (o: EngineValues): LoadModelOptions & Pick<CreateModelOptions, 'device'> => ({
  device: (o.device ?? 'cpu') as Device,
  ...(o.precision === undefined ? {} : { precision: o.precision }),
  ...(o.threads === undefined ? {} : { threads: o.threads }),
  ...(o.deterministic ? { deterministic: true } : {}),
  ...(o.memoryLimit === undefined ? {} : { memoryLimit: o.memoryLimit }),
})

function checkWords(o: WeightsValues): void {
  const conflict =
    o.checkpoint === undefined ? undefined : (['weights', 'model', 'compat'] as const).find((key) => o[key] !== undefined)
  if (conflict) {
    throw new EffnetError('EFF_CONFIG_VALUE', `--checkpoint and --${conflict} both say what to run`, {
      hint: 'give --checkpoint DIR alone, or --model NAME --weights FILE',
    })
  }
  if (o.weights !== undefined && o.model === undefined) {
    throw new EffnetError('EFF_CONFIG_VALUE', '--weights needs --model: a file of weights does not say whose they are', {
      hint: `add --model NAME, e.g. --model tf_efficientnet_b0   (effnet models list names all)`,
    })
  }
}

/**
 * Weights that can answer: EFF_WEIGHTS_MISSING where a model has none, EFF_WEIGHTS_SHAPE where `--num-classes` is not the
 * number the weights have (their classifier would be replaced by an untrained one).
 */
export async function openModel(o: WeightsValues, ui: Told): Promise<Model> {
  const model = await openChecked(o)
  tellOfMachine(model, ui)
  return model
}

/** What the model's session has to say of its machine goes to the console; warnings with `--json` too: to stderr. */
export function tellOfMachine({ session }: { session: Pick<Model['session'], 'listen'> }, ui: Told): void {
  session.listen({
    onWarning: (code, message, hint) => ui.warn(code, message, hint),
    onMeasuring: (measuring) => tellMeasuring(measuring, ui),
  })
}

type Told = Pick<Ui, 'warn' | 'line'>

/** Seconds to minutes in which nothing else is said. */
export function tellMeasuring({ plan, ops, seconds }: Measuring, ui: Pick<Ui, 'line'>): void {
  const those = `${ops} op${ops === 1 ? '' : 's'} (${plan})`
  ui.line(
    seconds === undefined ? `kernels  measuring those of ${those}` : `kernels  ${those} · measured in ${seconds.toFixed(1)} s`,
  )
}

async function openChecked(o: WeightsValues): Promise<Model> {
  checkWords(o)
  if (o.checkpoint !== undefined) {
    const { loadModel } = await import('../model.js')
    const model = await loadModel(o.checkpoint, engineOptions(o))
    const { numClasses } = model.config
    if (o.numClasses === undefined || o.numClasses === numClasses) return model
    await model.close()
    throw wrongClasses(o.checkpoint, numClasses, o.numClasses)
  }
  const name = o.model ?? DEFAULT_MODEL
  const { createModel } = await import('../model.js')
  const model = await createModel(name, {
    pretrained: o.weights ?? true,
    ...(o.compat === undefined ? {} : { compat: o.compat }),
    ...(o.numClasses === undefined ? {} : { numClasses: o.numClasses }),
    ...engineOptions(o),
  })
  const replaced = model.weights.headReplaced
  if (!replaced) return model
  await model.close()
  throw wrongClasses(o.weights ?? name, replaced.from, replaced.to)
}

const wrongClasses = (source: string, has: number, asked: number): EffnetError =>
  new EffnetError('EFF_WEIGHTS_SHAPE', `${source}: the classifier has ${has} classes, --num-classes asks for ${asked}`, {
    hint: `leave --num-classes out, or train a new classifier: effnet train --data DIR --model NAME --weights FILE`,
    details: { classes: has, asked, why: 'a new classifier would be untrained' },
  })

/** The model as one line: `model  tf_efficientnet_b0 @224 · 5.29 M params · 0.39 GFLOPs · b0.safetensors (358 of 358 tensors)`. */
export async function modelLine(model: Model, imageSize: number, source?: string): Promise<string> {
  const { modelInfo } = await import('../nn/index.js')
  const info = modelInfo(model.config.name, { numClasses: model.config.numClasses, imageSize })
  const { kind, path, matched, total, headReplaced } = model.weights
  const from = source ?? (kind === 'random' ? 'random weights' : `${path ? shown(path) : kind} (${matched} of ${total} tensors)`)
  return [
    `model  ${model.config.name} @${imageSize}`,
    `${(info.params / 1e6).toFixed(2)} M params`,
    `${info.gflops.toFixed(2)} GFLOPs`,
    from,
    ...(headReplaced ? [`classifier replaced: ${headReplaced.from} -> ${headReplaced.to} classes`] : []),
  ].join(' · ')
}

async function engineParts(o: EngineValues): Promise<string[]> {
  const { binding } = await import('../binding.js')
  const { deviceName, openDevice } = await import('../runtime/device.js')
  const native = binding()
  const name = deviceName(o.device ?? 'cpu')
  if (name !== 'cpu') return [`${native.deviceInfo(await openDevice(name)).name} (${name})`]
  const cpu = native.cpuInfo()
  const threads = o.threads ?? cpu.cpus
  return [`CPU ${cpu.isa}, oneDNN ${cpu.onednnIsa}`, `${threads} thread${threads === 1 ? '' : 's'}`]
}

/** First line of a run: versions, platform, device, precision. Loads the addon. */
export async function headerLine(o: EngineValues, ui: Ui): Promise<string> {
  const { packageVersion } = await import('../version.js')
  return ui.paint.bold(
    [
      `effnet ${packageVersion()}`,
      `node ${process.versions.node}`,
      `${process.platform}-${process.arch}`,
      ...(await engineParts(o)),
      o.precision ?? 'fp32',
    ].join(' · '),
  )
}

/** `--device` as early as possible: EFF_BACKEND_MISSING where it is not there, EFF_CONFIG_VALUE for what is no device. */
export async function checkDeviceOption(device: string | undefined): Promise<void> {
  if (device === undefined) return
  const { deviceName, openDevice } = await import('../runtime/device.js')
  await openDevice(deviceName(device))
}
