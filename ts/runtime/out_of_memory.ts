/** A plan that needs more memory than its model may have: said in numbers, with the batch that would fit. */
import { byteText } from '../byte_text.js'
import { EffnetError } from '../errors.js'
import type { Graph } from '../graph/graph.js'
import { ARENA } from '../graph/plan_format.js'
import { type Tensor, tensorBytes } from '../graph/types.js'
import type { MemoryPlan } from '../passes/plan_memory.js'

/** What a model may still take. */
export interface Room {
  /** Bytes. */
  available: number
  /** Bytes; given where it is the limit of the model that leaves no more. */
  limit?: number
}

export interface Demand {
  /** The plan's name. */
  what: string
  batchSize: number
  arenaBytes: readonly number[]
  /** Bytes of each arena that the model has already. */
  held: readonly number[]
  /** Bytes beside the arenas. */
  beside?: number
  /** The plan's largest tensors. */
  largest?: readonly LargeTensor[]
}

export interface LargeTensor {
  name: string
  /** e.g. "f32[32,112,112,96]" */
  shape: string
  bytes: number
}

const LARGEST = 3

/** Of what a step makes, the largest first. */
export function largestTensors(graph: Graph, { placements }: MemoryPlan): LargeTensor[] {
  const made = new Set<Tensor>()
  for (const node of graph.nodes)
    for (const t of node.outputs) if (t && placements.get(t.id)?.arena === ARENA.activations) made.add(t)
  return [...made]
    .map((t) => ({ name: t.name, shape: `${t.dtype}[${t.shape}]`, bytes: tensorBytes(t) }))
    .sort((a, b) => b.bytes - a.bytes)
    .slice(0, LARGEST)
}

const needed = ({ arenaBytes, held, beside = 0 }: Demand): number =>
  arenaBytes.reduce((sum, bytes, arena) => sum + Math.max(0, bytes - (held[arena] ?? 0)), beside)

/** `cause`: of a try that failed though it seemed to fit. */
export function outOfMemory(demand: Demand, { available, limit }: Room, cause?: EffnetError): EffnetError {
  const { what, batchSize, arenaBytes, largest = [] } = demand
  const wanted = needed(demand)
  const perImage = (arenaBytes[ARENA.activations]! + arenaBytes[ARENA.input]! + arenaBytes[ARENA.output]!) / batchSize
  const withoutImages = wanted - perImage * batchSize
  const most = Math.floor((0.9 * available - withoutImages) / perImage)
  const fits = Math.max(0, cause ? Math.min(most, Math.floor(0.9 * batchSize)) : most)
  const left =
    limit === undefined
      ? `${byteText(available)} are available`
      : `${byteText(available)} are left of the limit of ${byteText(limit)}`
  const tensors = largest.map((t) => `${t.name} ${t.shape} (${byteText(t.bytes)})`).join(', ')
  const parts = [
    `${what} needs ${byteText(wanted)} of memory; ${left}`,
    ...(cause ? [cause.message] : []),
    ...(tensors ? [`the largest tensors: ${tensors}`] : []),
  ]
  const instead = limit === undefined ? 'a machine with more memory' : 'a larger memoryLimit'
  const smaller =
    withoutImages < available
      ? `a smaller --image-size or model, or ${instead}`
      : `a smaller model, or ${instead}; the weights and what goes with them take ${byteText(withoutImages)} more, whatever the batch`
  return new EffnetError('EFF_OOM', parts.join('; '), {
    hint: fits >= 1 ? `--batch-size ${fits}` : smaller,
    details: {
      needed: wanted,
      available,
      ...(limit === undefined ? {} : { limit }),
      batchSize,
      batchSizeThatFits: fits,
      largest,
    },
    ...(cause ? { cause } : {}),
  })
}

/** Of a limit that has no room for a model whatever is done with it. @throws EFF_OOM */
export function checkWeights(model: string, bytes: number, limit: number): void {
  if (bytes <= limit) return
  throw new EffnetError('EFF_OOM', `${model}: its weights alone take ${byteText(bytes)}; the limit is ${byteText(limit)}`, {
    hint: 'a larger memoryLimit, or a smaller model: no batch fits beside these weights',
    details: { needed: bytes, limit },
  })
}

/** Of weights that the device has no room for, whatever the batch; `total` is all that it has. Any other error is itself. */
export function weightsError(model: string, device: string, bytes: number, total: number, cause: unknown): unknown {
  if (!(cause instanceof EffnetError) || cause.code !== 'EFF_OOM') return cause
  return new EffnetError('EFF_OOM', `${model}: its weights take ${byteText(bytes)}; ${cause.message}`, {
    hint:
      device === 'cpu'
        ? 'free memory of this machine, or a smaller model: it is the weights, whatever the batch'
        : bytes > total
          ? `a GPU with more memory than the ${byteText(total)} of this one, or a smaller model: it is the weights, whatever the batch`
          : "end what else holds the GPU's memory (nvidia-smi names the processes), take another GPU (device 'cuda:1'), or a smaller model: it is the weights, whatever the batch",
    details: { needed: bytes },
    cause,
  })
}

/** Before anything is allocated. @throws EFF_OOM */
export function checkMemory(demand: Demand, room: Room): void {
  if (needed(demand) > room.available) throw outOfMemory(demand, room)
}
