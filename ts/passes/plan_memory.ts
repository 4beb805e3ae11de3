/**
 * Gives every tensor its arena and offset. Activations are placed by lifetime: two tensors share bytes when no node lies
 * between the first write of one and the last use of the other. Largest first, each at the lowest offset that is free
 * over its whole life; linear arenas for everything that outlives a step. What lives and dies in a region is planned for one
 * image, in an arena of its own.
 */
import { EffnetError } from '../errors.js'
import type { Graph } from '../graph/graph.js'
import { ALIGNMENT, ARENA, ARENA_COUNT } from '../graph/plan_format.js'
import { type Tensor, tensorBytes } from '../graph/types.js'
import { type Parts, parted } from '../turns.js'
import type { ImageRegion } from './image_region.js'

export const align = (bytes: number): number => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT

export interface Placement {
  readonly arena: number
  /** Bytes; a multiple of 64. */
  readonly offset: number
}

export interface MemoryPlan {
  /** By tensor id; absent for tensors that no node touches. */
  readonly placements: ReadonlyMap<number, Placement>
  /** Of `ARENA.image`: for one image in work. */
  readonly arenaBytes: readonly number[]
  readonly region: ImageRegion | null
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

/**
 * Bytes of the activations arena in which a plan runs on `threads`: behind the plan's activations lies each image of the region
 * that is in work. The twin of Executable::activation_bytes in native/cpu/executable.cc.
 */
export function activationBytes({ arenaBytes, region }: MemoryPlan, threads: number): number {
  const rest = region ? region.images % threads : 0
  const inWork = !region ? 0 : region.images >= threads || 4 * rest > 3 * threads ? threads : 1
  return arenaBytes[ARENA.activations]! + inWork * arenaBytes[ARENA.image]!
}

/** @param region tensors inside it get their place for one image */
export const planMemory = parted(function* (
  graph: Graph,
  request: MemoryRequest,
  region: ImageRegion | null = null,
): Parts<MemoryPlan> {
  const placements = new Map<number, Placement>()
  const sizes = new Array<number>(ARENA_COUNT).fill(0)
  const lives = new Map<number, Life>()
  const innerLives = new Map<number, Life>()

  const weightOffset = (t: Tensor): number => {
    const offset = request.weightOffsets.get(t.name)
    if (offset === undefined) throw new EffnetError('EFF_INTERNAL', `${t.name} has no place among the model's weights`)
    return offset
  }
  const bump = (arena: number, t: Tensor): void => {
    placements.set(t.id, { arena, offset: sizes[arena]! })
    sizes[arena] = align(sizes[arena]! + tensorBytes(t))
  }
  const live = (into: Map<number, Life>, t: Tensor, bytes: number, first: number, last: number): void => {
    const life = into.get(t.id)
    if (life) life.last = last
    else into.set(t.id, { tensor: t, bytes: align(bytes), first, last })
  }
  // Images in work are at different nodes of the region: what all of them see lives through the whole of it.
  const inside = graph.nodes.flatMap((node, index) => (region?.nodes.has(node) ? [index] : []))
  const touch = (t: Tensor, index: number, inRegion: boolean): void => {
    if (t.role === 'activation') {
      if (region?.inner.has(t)) live(innerLives, t, tensorBytes(t) / region.images, index, index)
      else live(lives, t, tensorBytes(t), inRegion ? inside[0]! : index, inRegion ? inside.at(-1)! : index)
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
  for (const [index, node] of graph.nodes.entries()) {
    for (const t of [...node.inputs, ...node.outputs, ...node.updates]) if (t) touch(t, index, region?.nodes.has(node) ?? false)
    yield
  }
  sizes[ARENA.activations] = yield* placeByLifetime([...lives.values()], ARENA.activations, placements)
  sizes[ARENA.image] = yield* placeByLifetime([...innerLives.values()], ARENA.image, placements)
  sizes[ARENA.weights] = request.weightBytes
  for (const name of ['grads', 'moment0', 'moment1', 'ema'] as const)
    sizes[ARENA[name]] = request.mirrors?.[name] ? request.weightBytes : 0
  return { placements, arenaBytes: sizes, region }
})

function* placeByLifetime(lives: Life[], arena: number, placements: Map<number, Placement>): Parts<number> {
  lives.sort((a, b) => b.bytes - a.bytes || a.first - b.first || a.tensor.id - b.tensor.id)
  // Placed tensors by offset, so that one sweep finds the lowest gap.
  const placed: { offset: number; end: number; first: number; last: number }[] = []
  let total = 0
  for (const life of lives) {
    yield
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
    placements.set(life.tensor.id, { arena, offset })
    total = Math.max(total, entry.end)
  }
  return total
}
