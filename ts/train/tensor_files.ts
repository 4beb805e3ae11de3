/** Checkpoint tensors under timm's names: equal weights give equal bytes (no times, paths or thread counts). */
import path from 'node:path'
import { ARENA, binding, type FileSpec, type WrittenFile } from '../binding.js'
import { EffnetError } from '../errors.js'
import type { Session } from '../runtime/session.js'
import type { WeightSlot } from '../runtime/weights_layout.js'
import {
  layoutSafetensors,
  matchWeights,
  modelFile,
  type Naming,
  openSafetensors,
  transferOf,
  type WeightsMatch,
} from '../weights/index.js'
import type { OptimizerName } from './types.js'

export const MODEL_FILE = 'model.safetensors'
export const EMA_FILE = 'ema.safetensors'
const OPTIMIZER_FILE = 'optimizer.safetensors'

/** PyTorch's names of the optimizer's state, by arena. */
const MOMENTS: Record<OptimizerName, readonly [arena: number, name: string][]> = {
  adamw: [
    [ARENA.moment0, 'exp_avg'],
    [ARENA.moment1, 'exp_avg_sq'],
  ],
  sgd: [[ARENA.moment0, 'momentum_buffer']],
  rmsprop: [
    [ARENA.moment0, 'square_avg'],
    [ARENA.moment1, 'momentum_buffer'],
  ],
  rmsprop_tf: [
    [ARENA.moment0, 'square_avg'],
    [ARENA.moment1, 'momentum_buffer'],
  ],
}

interface Item {
  name: string
  arena: number
  slot: WeightSlot
}

/** State of every parameter; of a frozen one it is zero and keeps its place, so that it may be thawed. */
const momentItems = (session: Session, optimizer: OptimizerName): Item[] =>
  MOMENTS[optimizer].flatMap(([arena, name]) =>
    session.slots.filter((s) => s.role === 'parameter').map((slot) => ({ name: `${slot.name}.${name}`, arena, slot })),
  )

function optimizerFile(session: Session, file: string, optimizer: OptimizerName): FileSpec {
  const items = momentItems(session, optimizer)
  const layout = layoutSafetensors(
    items.map((item) => ({ name: item.name, dtype: 'F32', shape: item.slot.info.torchShape })),
    { format: 'pt', optimizer },
  )
  const byName = new Map(items.map((item) => [item.name, item]))
  const tensors = layout.tensors.map((t) => {
    const { arena, slot } = byName.get(t.name)!
    return transferOf(slot, { arena, offset: slot.offset }, t.begin, 'F32')
  })
  return { path: file, header: layout.header, dataBytes: layout.dataBytes, tensors }
}

const weightsFile = (session: Session, file: string, arena: number, naming: Naming = 'timm'): FileSpec =>
  modelFile(file, session.config, (name) => session.layout.offsets.get(name)!, { arena, naming })

export interface TensorContent {
  ema: boolean
  /** Absent: weights only. */
  optimizer?: OptimizerName
  /** Where the weights are; default their own arena. */
  weightsArena?: number
}

/** What is written does not change while a session lives: laid out once, not at every save. */
const layouts = new WeakMap<Session, Map<string, readonly [name: string, spec: FileSpec][]>>()

function fileSpecs(session: Session, dir: string, content: TensorContent): [name: string, spec: FileSpec][] {
  const known = layouts.get(session) ?? new Map()
  layouts.set(session, known)
  const key = `${content.ema} ${content.optimizer ?? ''} ${content.weightsArena ?? ''}`
  if (!known.has(key)) known.set(key, layoutFiles(session, content))
  return known.get(key)!.map(([name, spec]: [string, FileSpec]) => [name, { ...spec, path: path.join(dir, name) }])
}

function layoutFiles(session: Session, content: TensorContent): [name: string, spec: FileSpec][] {
  const files: [string, FileSpec][] = [[MODEL_FILE, weightsFile(session, MODEL_FILE, content.weightsArena ?? ARENA.weights)]]
  if (content.ema) files.push([EMA_FILE, weightsFile(session, EMA_FILE, ARENA.ema)])
  if (content.optimizer) files.push([OPTIMIZER_FILE, optimizerFile(session, OPTIMIZER_FILE, content.optimizer)])
  return files
}

/** Bytes the tensor files will take. */
export const tensorBytes = (session: Session, content: TensorContent): number =>
  fileSpecs(session, '', content).reduce((sum, [, spec]) => sum + spec.header.length + spec.dataBytes, 0)

/** Copies the arenas before it returns; writes, fsyncs and hashes behind the promise. */
export async function writeTensorFiles(
  session: Session,
  dir: string,
  content: TensorContent,
): Promise<Record<string, WrittenFile>> {
  const files = fileSpecs(session, dir, content)
  const written = await binding().saveTensors(
    session.memory,
    files.map(([, spec]) => spec),
  )
  return Object.fromEntries(files.map(([name], i) => [name, written[i]!]))
}

/** One safetensors file of the weights, which are in `arena`. */
export async function writeWeightsFile(session: Session, file: string, naming: Naming, arena: number): Promise<void> {
  await binding().saveTensors(session.memory, [weightsFile(session, path.resolve(file), arena, naming)])
}

/** Any file under timm's, torchvision's or NVIDIA's names into an arena. @throws EFF_WEIGHTS_SHAPE, EFF_WEIGHTS_CORRUPT */
export async function readWeightsFile(
  session: Session,
  file: string,
  options: { arena?: number; replaceHead?: boolean } = {},
): Promise<WeightsMatch> {
  const opened = await openSafetensors(file)
  const match = matchWeights(opened, session.config, { offsetOf: (name) => session.layout.offsets.get(name)!, ...options })
  await binding().loadTensors(session.memory, opened.path, opened.dataStart, match.transfers)
  if ((options.arena ?? ARENA.weights) === ARENA.weights) session.weightsChanged()
  return match
}

/** The weights, and of the moving average and optimizer state what is asked for; the arenas must exist: a training plan was made. */
export async function readTrainingState(session: Session, dir: string, content: TensorContent): Promise<void> {
  await readWeightsFile(session, path.join(dir, MODEL_FILE))
  if (content.ema) await readWeightsFile(session, path.join(dir, EMA_FILE), { arena: ARENA.ema })
  if (content.optimizer) await readOptimizerFile(session, path.join(dir, OPTIMIZER_FILE), content.optimizer)
}

async function readOptimizerFile(session: Session, file: string, optimizer: OptimizerName): Promise<void> {
  const opened = await openSafetensors(file)
  const transfers = momentItems(session, optimizer).map(({ name, arena, slot }) => {
    const entry = opened.tensors.get(name)
    const shape = slot.info.torchShape
    if (entry?.dtype !== 'F32' || entry.shape.join() !== shape.join()) {
      const found = entry ? `it is ${entry.dtype} [${entry.shape.join(', ')}]` : 'it is missing'
      throw new EffnetError('EFF_CKPT_CORRUPT', `${file}: ${name} should be F32 [${shape.join(', ')}]; ${found}`, {
        details: { path: file, tensor: name },
      })
    }
    return transferOf(slot, { arena, offset: slot.offset }, entry.begin, 'F32')
  })
  await binding().loadTensors(session.memory, opened.path, opened.dataStart, transfers)
}
