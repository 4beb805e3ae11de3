/**
 * Gives every tensor its arena and offset. Activations are placed by lifetime: two tensors share bytes when no node lies
 * between the first write of one and the last use of the other. Largest first, each at the lowest offset that is free
 * over its whole life; linear arenas for everything that outlives a step.
 */
import { EffnetError } from '../errors.js'
import type { Graph } from '../graph/graph.js'
import { ALIGNMENT, ARENA, ARENA_COUNT } from '../graph/plan_format.js'
import { type Tensor, tensorBytes } from '../graph/types.js'

export const align = (bytes: number): number => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT

export interface Placement {
  readonly arena: number
  /** Bytes; a multiple of 64. */
  readonly offset: number
}

export interface MemoryPlan {
  /** By tensor id; absent for tensors that no node touches. */
  readonly placements: ReadonlyMap<number, Placement>
  readonly arenaBytes: readonly number[]
}

export interface MemoryRequest {
  /** Byte offset of each parameter and buffer in the weights arena, by name: fixed by the model, not by the graph. */
  readonly weightOffsets: ReadonlyMap<string, number>
  readonly weightBytes: number
  /** Bytes of the arenas that mirror the weights, when the graph has an optimizer or a moving average. */
  readonly mirrors?: { grads?: boolean; moment0?: boolean; moment1?: boolean; ema?: boolean }
}

interface Life {
  tensor: Tensor
  bytes: number
  first: number
  last: number
}

export function planMemory(graph: Graph, request: MemoryRequest): MemoryPlan {
  const placements = new Map<number, Placement>()
  const sizes = new Array<number>(ARENA_COUNT).fill(0)
  const lives = new Map<number, Life>()

  const weightOffset = (t: Tensor): number => {
    const offset = request.weightOffsets.get(t.name)
    if (offset === undefined) throw new EffnetError('EFF_INTERNAL', `${t.name} has no place among the model's weights`)
    return offset
  }
  const bump = (arena: number, t: Tensor): void => {
    placements.set(t.id, { arena, offset: sizes[arena]! })
    sizes[arena] = align(sizes[arena]! + tensorBytes(t))
  }
  const touch = (t: Tensor, index: number): void => {
    if (t.role === 'activation') {
      const life = lives.get(t.id)
      if (life) life.last = index
      else lives.set(t.id, { tensor: t, bytes: align(tensorBytes(t)), first: index, last: index })
      return
    }
    if (placements.has(t.id)) return
    if (t.role === 'parameter' || t.role === 'buffer') placements.set(t.id, { arena: ARENA.weights, offset: weightOffset(t) })
    else if (t.role === 'gradient') placements.set(t.id, { arena: ARENA.grads, offset: weightOffset(t.of!) })
    else if (t.role === 'prepared') bump(ARENA.prepared, t)
    else if (t.role === 'output') bump(ARENA.output, t)
  }

  // Inputs in the order of the graph: the host fills the arena without looking at the plan.
  for (const t of graph.tensors) if (t.role === 'input') bump(ARENA.input, t)
  graph.nodes.forEach((node, index) => {
    for (const t of [...node.inputs, ...node.outputs, ...node.updates]) if (t) touch(t, index)
  })
  sizes[ARENA.activations] = placeByLifetime([...lives.values()], placements)
  sizes[ARENA.weights] = request.weightBytes
  for (const name of ['grads', 'moment0', 'moment1', 'ema'] as const)
    sizes[ARENA[name]] = request.mirrors?.[name] ? request.weightBytes : 0
  return { placements, arenaBytes: sizes }
}

function placeByLifetime(lives: Life[], placements: Map<number, Placement>): number {
  lives.sort((a, b) => b.bytes - a.bytes || a.first - b.first || a.tensor.id - b.tensor.id)
  // Placed tensors by offset, so that one sweep finds the lowest gap.
  const placed: { offset: number; end: number; first: number; last: number }[] = []
  let total = 0
  for (const life of lives) {
    let offset = 0
    for (const other of placed) {
      if (other.first > life.last || other.last < life.first || other.end <= offset) continue
      if (other.offset >= offset + life.bytes) break
      offset = other.end
    }
    const entry = { offset, end: offset + life.bytes, first: life.first, last: life.last }
    let at = placed.length
    while (at > 0 && placed[at - 1]!.offset > offset) at--
    placed.splice(at, 0, entry)
    placements.set(life.tensor.id, { arena: ARENA.activations, offset })
    total = Math.max(total, entry.end)
  }
  return total
}
