/** Writes a graph and its memory plan as the flat buffer that native/plan/format.h describes. */
import { createHash } from 'node:crypto'
import { EffnetError } from '../errors.js'
import type { Graph } from '../graph/graph.js'
import { OP_TABLE, OP_TABLE_HASH } from '../graph/op_table.js'
import { ARENA_COUNT } from '../graph/plan_format.js'
import { type DType, dtypeBytes, elements, type Node, type Shape, type Tensor } from '../graph/types.js'
import { type Parts, parted } from '../turns.js'
import type { MemoryPlan } from './plan_memory.js'

const MAGIC = 0x50464645
const VERSION = 2
const HEADER_BYTES = 104 + 8 * ARENA_COUNT
const TENSOR_BYTES = 48
const OP_BYTES = 44
const NO_TENSOR = 0xffffffff
const DTYPE_CODES: Record<DType, number> = { f32: 0, bf16: 1, f16: 2, u8: 3, i32: 4 }
const FLAG_PREPARE = 1
const FLAG_RECOMPUTED = 2
const FLAG_TF32 = 4
const FLAG_HALF_GRADIENT = 8
const TENSOR_SLICE = 1

export interface EmittedPlan {
  readonly bytes: Uint8Array<ArrayBuffer>
  /** SHA-256 of the bytes, hex: equal plans on every rank have equal hashes. */
  readonly hash: string
}

class Names {
  private readonly chunks: Uint8Array[] = []
  private readonly encoder = new TextEncoder()
  size = 0

  add(name: string): [offset: number, bytes: number] {
    const chunk = this.encoder.encode(name)
    const offset = this.size
    this.chunks.push(chunk)
    this.size += chunk.length
    return [offset, chunk.length]
  }

  write(into: Uint8Array, at: number): void {
    for (const chunk of this.chunks) {
      into.set(chunk, at)
      at += chunk.length
    }
  }
}

interface TensorRecord {
  readonly tensor: Tensor
  readonly name: string
  readonly shape: Shape
  /** The part of the region's present image of a tensor that also has a record of its own. */
  readonly slice: boolean
}

/** One record a tensor, and one more for each that nodes of the region see one image of. */
function recordsOf(graph: Graph, { placements, region }: MemoryPlan): TensorRecord[] {
  const placed = graph.tensors.filter((t) => placements.has(t.id))
  const ofOneImage = (t: Tensor): Shape => [1, ...t.shape.slice(1)]
  const whole = placed.map((tensor) => {
    return { tensor, name: tensor.name, shape: region?.inner.has(tensor) ? ofOneImage(tensor) : tensor.shape, slice: false }
  })
  const shared = region ? placed.filter((t) => region.tensors.has(t) && !region.inner.has(t)) : []
  const slices = shared.map((tensor) => ({ tensor, name: `${tensor.name}[image]`, shape: ofOneImage(tensor), slice: true }))
  return [...whole, ...slices]
}

const up8 = (n: number): number => Math.ceil(n / 8) * 8

export interface EmitOptions {
  /** FP32 products of convolutions and of matrices may use TF32. */
  tf32?: boolean
  /** Gradients of the weights of larger convolutions are rounded to the 16 bits of their images. */
  halfWeightGradients?: boolean
}

/** Of FP32 values; an op that reads uint8 images has them on its other side. */
function isProduct({ op, inputs, outputs }: Node): boolean {
  if (!/^(input_)?conv2d|^linear/.test(op)) return false
  const [src, diffDst] = inputs
  const values = src?.dtype !== 'u8' ? src : op === 'input_conv2d_bwd_weights' ? diffDst : outputs[0]
  return values?.dtype === 'f32'
}

/**
 * Gradients of weights that a library may have no FP32 ones of: of 16-bit images and more than one pixel, channels in eights, as its
 * engines for them take. 1x1 convolutions are matrix products, whose FP32 results cost nothing.
 */
export function mayHaveHalfGradient({ op, inputs, outputs }: Node): boolean {
  const [oc, kh, kw, ic] = outputs[0]?.shape ?? []
  return op === 'conv2d_bwd_weights' && dtypeBytes(inputs[0]!.dtype) === 2 && kh! * kw! > 1 && oc! % 8 === 0 && ic! % 8 === 0
}

export const emit = parted(function* (
  graph: Graph,
  memory: MemoryPlan,
  { tf32 = false, halfWeightGradients = false }: EmitOptions = {},
): Parts<EmittedPlan> {
  const { region } = memory
  const tensors = recordsOf(graph, memory)
  yield
  const indexOf = new Map(tensors.flatMap(({ tensor, slice }, i) => (slice ? [] : [[tensor.id, i]])))
  const sliceOf = new Map(tensors.flatMap(({ tensor, slice }, i) => (slice ? [[tensor.id, i]] : [])))
  yield
  // Prepare ops come first; the order within each program stays.
  const nodes = [...graph.nodes.filter((n) => n.prepare), ...graph.nodes.filter((n) => !n.prepare)]
  const names = new Names()
  const refs: number[] = []
  const attrs: number[] = []

  const refer = (list: readonly (Tensor | null)[], inRegion: boolean): [first: number, count: number] => {
    const first = refs.length
    for (const t of list) {
      const index = t ? ((inRegion ? sliceOf.get(t.id) : undefined) ?? indexOf.get(t.id)) : NO_TENSOR
      if (index === undefined) throw new EffnetError('EFF_INTERNAL', `${t!.name} has no place in the memory plan`)
      refs.push(index)
    }
    return [first, list.length]
  }
  const operands = (node: Node): number[] => {
    const info = OP_TABLE[node.op]
    const ranges = [node.inputs, node.outputs, node.updates].flatMap((list) => refer(list, region?.nodes.has(node) ?? false))
    const first = attrs.length
    for (const name of info.attrs) attrs.push(node.attrs[name]!)
    return [...ranges, first, info.attrs.length]
  }
  const tensorNames = tensors.map(({ name }) => names.add(name))
  yield
  const nodeRecords: { node: Node; name: [offset: number, bytes: number]; operands: number[] }[] = []
  for (const node of nodes) {
    nodeRecords.push({ node, name: names.add(node.name), operands: operands(node) })
    yield
  }

  const tensorsAt = up8(HEADER_BYTES)
  const opsAt = up8(tensorsAt + tensors.length * TENSOR_BYTES)
  const refsAt = up8(opsAt + nodes.length * OP_BYTES)
  const attrsAt = up8(refsAt + refs.length * 4)
  const namesAt = attrsAt + attrs.length * 8
  const total = up8(namesAt + names.size)
  const bytes = new Uint8Array(total)
  const view = new DataView(bytes.buffer)
  const u16 = (at: number, v: number) => view.setUint16(at, v, true)
  const u32 = (at: number, v: number) => view.setUint32(at, v, true)
  const u64 = (at: number, v: number) => view.setBigUint64(at, BigInt(v), true)

  const fill = (write: (at: number, v: number) => void, at: number, size: number, values: readonly number[]) => {
    for (const [i, v] of values.entries()) write(at + size * i, v)
  }

  fill(u32, 0, 4, [MAGIC, VERSION, OP_TABLE_HASH, HEADER_BYTES])
  u64(16, total)
  fill(u32, 24, 4, [tensors.length, nodes.length, refs.length, attrs.length])
  fill(u64, 40, 8, [tensorsAt, opsAt, refsAt, attrsAt, namesAt, names.size])
  if (region) fill(u32, 88, 4, [nodes.findIndex((n) => region.nodes.has(n)), region.nodes.size, region.images])
  fill(u64, 104, 8, memory.arenaBytes)

  for (const [i, { tensor: t, shape, slice }] of tensors.entries()) {
    yield
    const at = tensorsAt + i * TENSOR_BYTES
    const { arena, offset } = memory.placements.get(t.id)!
    u32(at, tensorNames[i]![0])
    u32(at + 4, tensorNames[i]![1])
    view.setUint8(at + 8, DTYPE_CODES[t.dtype])
    view.setUint8(at + 9, arena)
    view.setUint8(at + 10, shape.length)
    view.setUint8(at + 11, slice ? TENSOR_SLICE : 0)
    u64(at + 16, offset)
    u64(at + 24, elements(shape) * dtypeBytes(t.dtype))
    for (let d = 0; d < 4; d++) u32(at + 32 + 4 * d, shape[d] ?? 1)
  }
  for (const [i, { node, name, operands }] of nodeRecords.entries()) {
    yield
    const at = opsAt + i * OP_BYTES
    u16(at, OP_TABLE[node.op].id)
    u16(
      at + 2,
      (node.prepare ? FLAG_PREPARE : 0) |
        (node.recomputed ? FLAG_RECOMPUTED : 0) |
        (tf32 && isProduct(node) ? FLAG_TF32 : 0) |
        (halfWeightGradients && mayHaveHalfGradient(node) ? FLAG_HALF_GRADIENT : 0),
    )
    u32(at + 4, name[0])
    u32(at + 8, name[1])
    fill(u32, at + 12, 4, operands)
  }
  yield
  fill(u32, refsAt, 4, refs)
  fill((at, v) => view.setFloat64(at, v, true), attrsAt, 8, attrs)
  names.write(bytes, namesAt)
  return { bytes, hash: createHash('sha256').update(bytes).digest('hex') }
})
