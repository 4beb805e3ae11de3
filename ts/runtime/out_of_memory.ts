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
  /** Of a GPU's memory. */
  gpu?: boolean
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
  /** Bytes that binding the plan is likely to take besides: nothing is refused for them, and a batch that is said to fit has them. */
  scratch?: number
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

/** Of the same plan for another batch. */
export type DemandOf = (batchSize: number) => Promise<Demand>

/** Of what is available: for what no plan tells of, such as workspaces of libraries. */
const SPARE = 0.1
/** Of the batch that fits, by which a larger one is no longer looked for. */
const NEAR = 0.01
const MOST_TRIES = 6

interface Fitting {
  /** 0: none. */
  batchSize: number
  /** Bytes that would be needed for no image at all. */
  fixed: number
}

/**
 * The largest batch, or one within a hundredth of it, that needs no more than `bytes`. What a batch needs is nearly a line, by which the
 * next try is found; that a batch fits is known of its own plan.
 */
async function fittingBatch(demand: Demand, bytes: number, demandOf: DemandOf): Promise<Fitting> {
  const needOf = (of: Demand) => ({ batchSize: of.batchSize, bytes: needed(of) + (of.scratch ?? 0) })
  const needs = async (batchSize: number) => needOf(await demandOf(batchSize))
  const asked = needOf(demand)
  const one = asked.batchSize === 1 ? asked : await needs(1)
  let above = asked.batchSize === 1 ? await needs(2) : asked
  const fixed = one.bytes - (above.bytes - one.bytes) / (above.batchSize - 1)
  if (one.bytes > bytes) return { batchSize: 0, fixed }
  if (above.bytes <= bytes) return { batchSize: above.batchSize, fixed }
  let below = one
  for (let tries = 0; tries < MOST_TRIES && above.batchSize - below.batchSize > 1; tries++) {
    const share = (bytes - below.bytes) / (above.bytes - below.bytes)
    const next = below.batchSize + Math.floor(share * (above.batchSize - below.batchSize))
    if (next - below.batchSize <= NEAR * below.batchSize) break
    const tried = await needs(next)
    if (tried.bytes <= bytes) below = tried
    else above = tried
  }
  return { batchSize: below.batchSize, fixed }
}

/** `cause`: of a try that failed though it seemed to fit. */
export async function outOfMemory(demand: Demand, room: Room, demandOf: DemandOf, cause?: EffnetError): Promise<EffnetError> {
  const { available, limit } = room
  const { what, batchSize, largest = [] } = demand
  const wanted = needed(demand)
  const fitting = await fittingBatch(demand, (1 - SPARE) * available, demandOf)
  const fits = cause ? Math.min(fitting.batchSize, Math.floor((1 - SPARE) * batchSize)) : fitting.batchSize
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
  return new EffnetError('EFF_OOM', parts.join('; '), {
    hint: fits >= 1 ? `--batch-size ${fits}` : smallerMend(fitting.fixed, room),
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

/** Where no batch fits; `fixed` bytes are needed whatever the batch. */
function smallerMend(fixed: number, { available, limit, gpu = false }: Room): string {
  const larger = limit === undefined ? `a ${gpu ? 'GPU' : 'machine'} with more memory` : 'a larger memoryLimit'
  return fixed < available
    ? `a smaller --image-size or model, or ${larger}`
    : `a smaller model, or ${larger}; the weights and what goes with them take ${byteText(fixed)} more, whatever the batch`
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
export async function checkMemory(demand: Demand, room: Room, demandOf: DemandOf): Promise<void> {
  if (needed(demand) > room.available) throw await outOfMemory(demand, room, demandOf)
}
