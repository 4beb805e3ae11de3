/** From what was asked (`resume`) and what is on disk to where a run begins. */
import { createHash } from 'node:crypto'
import path from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { binding } from '../binding.js'
import type { ImageDataset } from '../data/types.js'
import { EffnetError } from '../errors.js'
import {
  changedMachine,
  type MachineState,
  type ModelJson,
  peekModelJson,
  readTrainState,
  type TrainState,
} from './checkpoint.js'
import {
  duplicateFolder,
  findFolder,
  isCorrupt,
  previousOf,
  readManifest,
  setAside,
  settleFolder,
  verifyFolder,
} from './checkpoint_folder.js'
import type { RunFolder } from './run_folder.js'
import type { FitOptions, ResolvedOptions } from './types.js'

export interface ResumePoint {
  dir: string
  state: TrainState
}

type Warn = (code: string, message: string, hint?: string) => void

/**
 * The verified checkpoint to continue from; undefined to start anew. Of a run the newest sound one: what is damaged is skipped
 * with a warning. A checkpoint that was named itself must be sound.
 * @throws EFF_CKPT_MISSING, EFF_CKPT_CORRUPT, EFF_INVALID_ARGUMENT
 */
export async function findResume(
  resume: FitOptions['resume'],
  folder: RunFolder | undefined,
  warn: Warn,
): Promise<ResumePoint | undefined> {
  if (resume === undefined) return undefined
  const named = resume === 'auto' || resume === 'last' ? undefined : path.resolve(resume)
  if (named === undefined && !folder) throw new EffnetError('EFF_INVALID_ARGUMENT', `resume: '${resume}' needs outDir`)
  const own = folder !== undefined && (named === undefined || named === folder.dir)
  const dir = own ? await ownCheckpoint(folder, warn) : await namedCheckpoint(named!, resume, warn)
  if (dir) return { dir, state: await readTrainState(dir) }
  if (resume === 'auto') return undefined
  throw new EffnetError('EFF_CKPT_MISSING', `${folder!.dir}: no complete checkpoint to continue from`, {
    hint: "resume: 'auto' (--resume) starts where there is none",
  })
}

/** Of the folder that this run will write to: after it, `last` is the one to go on from wherever it could be. */
async function ownCheckpoint(folder: RunFolder, warn: Warn): Promise<string | undefined> {
  const io = binding()
  await settleFolder(io, folder.best)
  await settleFolder(io, folder.last, { keepPrevious: true })
  const { dir, damaged } = await newestSound(folder.checkpoints)
  if (!dir) return undefined
  const sound = damaged.has(folder.last) ? await setAside(io, folder.last, dir) : dir
  await tell(damaged, sound, warn, damaged.has(folder.last) ? `${folder.last}.damaged keeps what was there` : undefined)
  await mendBest(folder, sound)
  return sound
}

/** A crash between the two: `last` was saved as the best so far and not yet copied there. */
async function mendBest(folder: RunFolder, dir: string): Promise<void> {
  if (dir !== folder.last) return
  const { best, step } = await readTrainState(dir)
  if (best?.step !== step) return
  const there = await readManifest(folder.best).catch(() => undefined)
  if (there?.step !== step) await duplicateFolder(binding(), dir, folder.best)
}

/** A checkpoint, or the newest sound one of another run; nothing is changed there. */
async function namedCheckpoint(given: string, shown: string, warn: Warn): Promise<string> {
  const checkpoints = path.join(given, 'checkpoints')
  const itself = await findFolder(given)
  if (itself) {
    await verifyNamed(itself)
    return itself
  }
  const { dir, damaged } = await newestSound(checkpoints)
  if (!dir) throw new EffnetError('EFF_CKPT_MISSING', `${shown}: no complete checkpoint here`, { details: { path: given } })
  await tell(damaged, dir, warn)
  return dir
}

async function verifyNamed(dir: string): Promise<void> {
  try {
    await verifyFolder(binding(), dir)
  } catch (cause) {
    const parent = path.dirname(dir)
    if (!isCorrupt(cause) || path.basename(parent) !== 'checkpoints') throw cause
    throw new EffnetError('EFF_CKPT_CORRUPT', cause.message, {
      hint: `--resume ${path.dirname(parent)}   goes on from the newest sound checkpoint of the run`,
      details: cause.details,
    })
  }
}

interface Choice {
  dir: string | undefined
  /** Those that were skipped, with what is wrong with them. */
  damaged: Map<string, EffnetError>
}

/** `last` where it is sound, else the newest of the others that is. @throws EFF_CKPT_CORRUPT where there are damaged ones only */
async function newestSound(checkpoints: string): Promise<Choice> {
  const damaged = new Map<string, EffnetError>()
  const last = path.join(checkpoints, 'last')
  const others: { dir: string; step: number }[] = []
  for (const dir of [previousOf(last), path.join(checkpoints, 'best')]) {
    const manifest = await soundOr(damaged, dir, () => readManifest(dir))
    if (manifest) others.push({ dir, step: manifest.step })
  }
  others.sort((a, b) => b.step - a.step)
  for (const dir of [last, ...others.map((o) => o.dir)]) {
    const manifest = await soundOr(damaged, dir, async () =>
      (await readManifest(dir)) ? verifyFolder(binding(), dir) : undefined,
    )
    if (manifest) return { dir, damaged }
  }
  const [first] = damaged.values()
  if (!first) return { dir: undefined, damaged }
  throw new EffnetError('EFF_CKPT_CORRUPT', first.message, {
    hint: 'no checkpoint of this run is sound: start again in another folder (--out)',
    details: first.details,
  })
}

async function soundOr<T>(damaged: Map<string, EffnetError>, dir: string, read: () => Promise<T>): Promise<T | undefined> {
  try {
    return await read()
  } catch (cause) {
    if (!isCorrupt(cause)) throw cause
    damaged.set(dir, cause)
    return undefined
  }
}

async function tell(damaged: Choice['damaged'], dir: string, warn: Warn, hint?: string): Promise<void> {
  if (damaged.size === 0) return
  const step = (await readManifest(dir))?.step
  const skipped = [...damaged.values()].map((error) => error.message).join('; ')
  warn('checkpoint-damaged', `skipped ${skipped}; going on from ${dir} (step ${step})`, hint)
}

/** model.json of the checkpoint that a run would continue from; undefined where it would start anew. Reads only. */
export async function peekResume(runOrCheckpoint: string): Promise<ModelJson | undefined> {
  const last = path.join(runOrCheckpoint, 'checkpoints/last')
  for (const dir of [runOrCheckpoint, last, previousOf(last), path.join(runOrCheckpoint, 'checkpoints/best')]) {
    try {
      if (await readManifest(dir)) return await peekModelJson(dir)
    } catch (cause) {
      // `fit` will tell of it.
      if (!isCorrupt(cause)) throw cause
    }
  }
  return undefined
}

/** Names and labels of a dataset, in order; independent of where it lies. */
export async function dataFingerprint(data: ImageDataset): Promise<TrainState['data']> {
  const hash = createHash('sha256')
  for (let i = 0; i < data.length; i++) {
    hash.update(`${path.relative(data.root, data.files[i]!)}\t${data.labels[i]}\n`)
    if (i % 512 === 511) await setImmediate()
  }
  return { images: data.length, sha256: hash.digest('hex'), classes: data.classes }
}

/** Options whose change makes a resumed run another run than the uninterrupted one. */
const DECISIVE = [
  'precision',
  'batchSize',
  'accumulate',
  'imageSize',
  'optimizer',
  'schedule',
  'labelSmoothing',
  'ema',
  'augment',
  'dropRate',
  'dropPathRate',
  'bnMomentum',
  'clipNorm',
  'maxEpochs',
  'maxSteps',
  'seed',
  'dataBackend',
  'deterministic',
  'lossScale',
  'halfWeightGradients',
] as const satisfies readonly (keyof ResolvedOptions)[]

/** Of runs from before there was such an option. */
const BEFORE: Partial<Record<keyof ResolvedOptions, unknown>> = {
  accumulate: 1,
  dataBackend: 'cpu',
  deterministic: false,
  lossScale: null,
  halfWeightGradients: false,
}

/** Values by the path to them: `optimizer.lr`. A list is one value. */
function leaves(value: unknown, name: string): [string, string][] {
  if (value === null) return [[name, 'not set']]
  if (typeof value !== 'object' || Array.isArray(value)) return [[name, JSON.stringify(value).replaceAll('"', '')]]
  return Object.entries(value).flatMap(([key, inner]) => leaves(inner, `${name}.${key}`))
}

/** Of the decisive options each value that is another now, in words: `optimizer.lr was 0.001 and is 0.5`. */
export function changedOptions(then: ResolvedOptions, now: ResolvedOptions): string[] {
  return DECISIVE.flatMap((key) => {
    const before = new Map(leaves(then[key] === undefined ? BEFORE[key] : then[key], key))
    return leaves(now[key], key)
      .filter(([name, value]) => before.get(name) !== value)
      .map(([name, value]) => `${name} was ${before.get(name) ?? (value === 'not set' ? 'set' : 'not set')} and is ${value}`)
  })
}

/**
 * What differs between the interrupted run and this one, as warnings.
 * @throws EFF_CONFIG_VALUE for another model or optimizer; EFF_DATA_LABEL for other classes
 */
export function resumeWarnings(
  point: ResumePoint,
  options: ResolvedOptions,
  data: TrainState['data'],
  frozen: readonly string[],
  machine: MachineState,
): { code: string; message: string; hint?: string }[] {
  const { state, dir } = point
  if (state.options.model !== options.model || state.options.numClasses !== options.numClasses) {
    throw new EffnetError(
      'EFF_CONFIG_VALUE',
      `${dir} is of ${state.options.model} with ${state.options.numClasses} classes, the model is ${options.model} with ${options.numClasses}`,
      { hint: `createModel('${state.options.model}', { numClasses: ${state.options.numClasses} })` },
    )
  }
  if (state.data.classes.join('\n') !== data.classes.join('\n')) {
    throw new EffnetError('EFF_DATA_LABEL', `${dir}: the run was trained on other classes than the data has`, {
      hint: 'resume with the data the run began with, or start a new run',
    })
  }
  if (state.options.optimizer.name !== options.optimizer.name) {
    throw new EffnetError(
      'EFF_CONFIG_VALUE',
      `${dir} holds the state of ${state.options.optimizer.name}, the run asks for ${options.optimizer.name}`,
      { hint: `optimizer: '${state.options.optimizer.name}'` },
    )
  }
  const warnings: { code: string; message: string; hint?: string }[] = []
  const changes = changedOptions(state.options, options)
  if (changes.length > 0) {
    warnings.push({ code: 'resume-option', message: `since the run was interrupted options changed: ${changes.join(', ')}` })
  }
  if (state.frozen.join('\n') !== frozen.join('\n')) {
    const message = `${state.frozen.length} parameters were frozen when the run was interrupted, now ${frozen.length} are (other ones)`
    warnings.push({ code: 'resume-frozen', message, hint: 'model.freeze with the same selection (--freeze)' })
  }
  if (state.data.sha256 !== data.sha256) {
    warnings.push({
      code: 'resume-data',
      message: `the training images changed (${state.data.images} then, ${data.images} now); the order of samples will differ`,
    })
  }
  const others = changedMachine(state.machine, machine)
  if (others.length > 0) {
    warnings.push({
      code: 'resume-machine',
      message: `${others.join(', ')}; results will not be bit-identical to an uninterrupted run`,
    })
  }
  return warnings
}
