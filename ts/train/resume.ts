/** From what was asked (`resume`) and what is on disk to where a run begins. */
import { createHash } from 'node:crypto'
import path from 'node:path'
import { binding } from '../binding.js'
import type { ImageDataset } from '../data/types.js'
import { EffnetError } from '../errors.js'
import { machineState, readTrainState, type TrainState } from './checkpoint.js'
import { findFolder, settleFolder, verifyFolder } from './checkpoint_folder.js'
import type { RunFolder } from './run_folder.js'
import type { FitOptions, ResolvedOptions } from './types.js'

export interface ResumePoint {
  dir: string
  state: TrainState
}

/**
 * The verified checkpoint to continue from; undefined to start anew.
 * @throws EFF_CKPT_MISSING, EFF_CKPT_CORRUPT, EFF_INVALID_ARGUMENT
 */
export async function findResume(resume: FitOptions['resume'], folder: RunFolder | undefined): Promise<ResumePoint | undefined> {
  if (resume === undefined) return undefined
  let dir: string | undefined
  if (resume === 'auto' || resume === 'last') {
    if (!folder) throw new EffnetError('EFF_INVALID_ARGUMENT', `resume: '${resume}' needs outDir`)
    dir = await settleFolder(binding(), folder.last)
    if (!dir && resume === 'auto') return undefined
    if (!dir) {
      throw new EffnetError('EFF_CKPT_MISSING', `${folder.dir}: no complete checkpoint to continue from`, {
        hint: "resume: 'auto' (--resume) starts where there is none",
      })
    }
  } else {
    const given = path.resolve(resume)
    dir = (await findFolder(given)) ?? (await findFolder(path.join(given, 'checkpoints/last')))
    if (!dir) throw new EffnetError('EFF_CKPT_MISSING', `${resume}: no complete checkpoint here`, { details: { path: given } })
  }
  await verifyFolder(binding(), dir)
  return { dir, state: await readTrainState(dir) }
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

/** Names and labels of a dataset, in order; independent of where it lies. */
export async function dataFingerprint(data: ImageDataset): Promise<TrainState['data']> {
  const hash = createHash('sha256')
  for (let i = 0; i < data.length; i++) {
    hash.update(`${path.relative(data.root, data.files[i]!)}\t${data.labels[i]}\n`)
    if (i % 512 === 511) await turn()
  }
  return { images: data.length, sha256: hash.digest('hex'), classes: data.classes }
}

/** Options whose change makes a resumed run another run than the uninterrupted one. */
const DECISIVE = [
  'precision',
  'batchSize',
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
] as const satisfies readonly (keyof ResolvedOptions)[]

/**
 * What differs between the interrupted run and this one, as warnings.
 * @throws EFF_CONFIG_VALUE for another model or optimizer; EFF_DATA_LABEL for other classes
 */
export function resumeWarnings(
  point: ResumePoint,
  options: ResolvedOptions,
  data: TrainState['data'],
  frozen: readonly string[],
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
  for (const key of DECISIVE) {
    const [then, now] = [JSON.stringify(state.options[key]), JSON.stringify(options[key])]
    if (then !== now) {
      warnings.push({ code: 'resume-option', message: `${key} was ${then} when the run was interrupted and is ${now} now` })
    }
  }
  if (state.frozen.join('\n') !== frozen.join('\n')) {
    const message = `${state.frozen.length} parameters were frozen when the run was interrupted, now ${frozen.length} are (other ones)`
    warnings.push({ code: 'resume-option', message, hint: 'model.freeze with the same selection (--freeze)' })
  }
  if (state.data.sha256 !== data.sha256) {
    warnings.push({
      code: 'resume-data',
      message: `the training images changed (${state.data.images} then, ${data.images} now); the order of samples will differ`,
    })
  }
  const machine = machineState()
  for (const key of ['package', 'onednn', 'isa', 'onednnIsa'] as const) {
    if (state.machine[key] === machine[key]) continue
    warnings.push({
      code: 'resume-machine',
      message: `${key} was ${state.machine[key]} and is ${machine[key]} now; results will not be bit-identical to an uninterrupted run`,
    })
  }
  return warnings
}
