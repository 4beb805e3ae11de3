/**
 * Checkpoints of models and runs: what is in the folder, and how it becomes a model or a running training again.
 * How the folder comes to exist whole or not at all is checkpoint_folder.ts.
 */
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { binding, type LossScale } from '../binding.js'
import { EffnetError } from '../errors.js'
import type { ModelConfig } from '../nn/index.js'
import type { Session } from '../runtime/session.js'
import type { KernelState, TuningMachine } from '../runtime/tuning.js'
import { machineFacts } from '../runtime/tuning.js'
import { packageVersion } from '../version.js'
import {
  CHECKPOINT_VERSION,
  type FolderOptions,
  findFolder,
  readManifest,
  startFolder,
  verifyFolder,
} from './checkpoint_folder.js'
import { EMA_FILE, type TensorContent, tensorBytes, writeTensorFiles } from './tensor_files.js'
import type { FitResult, Metrics, ResolvedOptions } from './types.js'

const MODEL_JSON = 'model.json'
const STATE_JSON = 'state.json'

/** model.json: all that prediction needs beside the weights. */
export interface ModelJson {
  format: 'effnet-model'
  version: number
  config: ModelConfig
  classes: readonly string[] | null
}

/** Bit-exact continuation holds between equal ones. */
export interface MachineState {
  package: string
  onednn: string
  isa: string
  onednnIsa: string
  /** Absent in runs from before it was kept. */
  device?: 'cpu' | 'cuda'
  /** Of a run on one. */
  gpu?: TuningMachine
}

export interface TrainState {
  format: 'effnet-state'
  version: number
  /** Whole epochs done. */
  epoch: number
  /** Optimizer steps done. */
  step: number
  stepInEpoch: number
  /** Position in the order of epoch `epoch`. */
  sample: number
  seed: number
  /** Updates of the moving average. */
  emaUpdates: number
  options: ResolvedOptions
  /** Where the loss is scaled. */
  lossScale?: LossScale | null
  /** Peak rate and steps of the schedule. */
  schedule: { stepsPerEpoch: number; totalSteps: number }
  running: number[]
  metrics: Metrics
  best: { metric: string; value: number; epoch: number; step: number } | null
  callbacks: Record<string, unknown>
  /** Names of the parameters that are not trained. */
  frozen: readonly string[]
  data: { images: number; sha256: string; classes: readonly string[] }
  machine: MachineState
  /** The kernels that a GPU's ops had, where they were measured. */
  kernels?: KernelState | null
  elapsedMs: number
  trainedMs: number
  trainedImages: number
  waitMs: number
  /** Set when the run came to its end. */
  result: FitResult | null
}

export function machineState({ tuning }: Pick<Session, 'tuning'>): MachineState {
  const native = binding()
  const { isa, onednnIsa } = native.cpuInfo()
  const device = tuning ? ({ device: 'cuda', gpu: tuning.machine } as const) : ({ device: 'cpu' } as const)
  return { package: packageVersion(), onednn: native.version().onednn, isa, onednnIsa, ...device }
}

/** What differs between two, in words: `isa was avx2 and is avx3`. */
export function changedMachine(then: MachineState, now: MachineState): string[] {
  const facts = ({ device, gpu, ...rest }: MachineState): Record<string, string> => ({
    ...rest,
    ...(device && { device }),
    // Of a GPU that is there on one side alone the device says enough.
    ...(gpu && then.gpu && now.gpu && machineFacts(gpu)),
  })
  const [before, after] = [facts(then), facts(now)]
  // Of runs from before it was kept the device is not known.
  if (then.device === undefined) delete after['device']
  return [...new Set([...Object.keys(before), ...Object.keys(after)])]
    .filter((key) => before[key] !== after[key])
    .map((key) => `${key} was ${before[key] ?? 'absent'} and is ${after[key] ?? 'absent'}`)
}

export const modelJson = (config: ModelConfig, classes: readonly string[] | undefined): ModelJson => ({
  format: 'effnet-model',
  version: CHECKPOINT_VERSION,
  config,
  classes: classes ?? null,
})

/** Copies the weights now; the folder is complete when `done` resolves to its bytes. */
export function startCheckpoint(
  session: Session,
  target: string,
  model: ModelJson,
  content: TensorContent,
  state?: TrainState,
  options: FolderOptions = {},
): Promise<{ done: Promise<number> }> {
  const folder = {
    step: state?.step ?? 0,
    bytes: tensorBytes(session, content),
    writeTensors: (dir: string) => writeTensorFiles(session, dir, content),
    json: { [MODEL_JSON]: model, ...(state ? { [STATE_JSON]: state } : {}) },
  }
  return startFolder(binding(), target, folder, options)
}

/**
 * The checkpoint folder a user means: a checkpoint, or a run folder (its best, else its last).
 * @throws EFF_CKPT_MISSING
 */
export async function resolveCheckpoint(given: string): Promise<string> {
  const dir = path.resolve(given)
  const candidates = [dir, path.join(dir, 'checkpoints/best'), path.join(dir, 'checkpoints/last')]
  for (const candidate of candidates) {
    const found = await findFolder(candidate)
    if (found) return found
  }
  throw new EffnetError('EFF_CKPT_MISSING', `${given}: no complete checkpoint here`, {
    hint: 'give a checkpoint folder (runs/.../checkpoints/best) or a run folder',
    details: { path: dir },
  })
}

/** model.json as it lies there, not compared with the manifest. @throws EFF_CKPT_CORRUPT, EFF_CKPT_VERSION */
export const peekModelJson = (dir: string): Promise<ModelJson> => readJson<ModelJson>(dir, MODEL_JSON, 'effnet-model')

/** Verified contents of a model's or a run's checkpoint. */
export async function readModelJson(dir: string): Promise<{ model: ModelJson; hasEma: boolean }> {
  const manifest = await verifyFolder(binding(), dir)
  const model = await peekModelJson(dir)
  return { model, hasEma: EMA_FILE in manifest.files }
}

/** Whether the checkpoint holds a moving average. */
export async function hasAverage(dir: string): Promise<boolean> {
  return EMA_FILE in ((await readManifest(dir))?.files ?? {})
}

/** @throws EFF_CKPT_MISSING when the folder holds a model without training state */
export async function readTrainState(dir: string): Promise<TrainState> {
  const manifest = await readManifest(dir)
  if (manifest && !(STATE_JSON in manifest.files)) {
    throw new EffnetError('EFF_CKPT_MISSING', `${dir}: a model without training state cannot be resumed`, {
      hint: 'start a new run from it: createModel(name, { pretrained: file })',
    })
  }
  return readJson<TrainState>(dir, STATE_JSON, 'effnet-state')
}

async function readJson<T extends { format: string; version: number }>(
  dir: string,
  name: string,
  format: T['format'],
): Promise<T> {
  const file = path.join(dir, name)
  const corrupt = (why: string, cause?: unknown): never => {
    throw new EffnetError('EFF_CKPT_CORRUPT', `${file}: ${why}`, { details: { path: file }, cause })
  }
  let value: T
  try {
    value = JSON.parse(await readFile(file, 'utf8')) as T
  } catch (cause) {
    return corrupt((cause as Error).message, cause)
  }
  if (value.format !== format) corrupt(`not of format ${format}`)
  if (value.version > CHECKPOINT_VERSION) {
    throw new EffnetError(
      'EFF_CKPT_VERSION',
      `${file}: version ${value.version}; this package reads up to ${CHECKPOINT_VERSION}`,
      {
        hint: 'update the package effnet-native',
      },
    )
  }
  return value
}
