/**
 * Runs a graph in float64: the oracle of passes and kernels. Slow and simple; one node at a time, every tensor its own array.
 */
import { EffnetError } from '../errors.js'
import type { StepScalars } from '../runtime/scalars.js'
import { DEFAULT_SCALARS } from '../runtime/scalars.js'
import type { Graph } from './graph.js'
import { OP_TABLE } from './op_table.js'
import type { RefTensor, StateArena } from './ops/def.js'
import { opDef } from './ops/index.js'
import { type DType, elements, type Node, type Tensor } from './types.js'

/** What values are rounded to. */
export type StoredType = DType | 'tf32'

/** Optimizer state and moving average by parameter name; kept by the caller from step to step, written in place. */
export type InterpreterState = Record<StateArena, Map<string, Float64Array>>

export const emptyState = (): InterpreterState => ({ moment0: new Map(), moment1: new Map(), ema: new Map() })

export interface InterpretOptions {
  /** Inputs, parameters and buffers by name, row-major in their stored layout. Not written. */
  values: ReadonlyMap<string, Float64Array>
  scalars?: Partial<StepScalars>
  /**
   * 'as-typed' rounds each tensor to its storage type, and what products read (weights, a source or gradient that is made on the
   * way in) to the type of 16-bit images. Default 'float64'.
   */
  storage?: 'float64' | 'as-typed'
  /** As typed, products of FP32 values read them in TF32. */
  tf32?: boolean
  /** As typed, what else happens to values that were rounded: for studies of what rounding does to a graph. */
  disturb?: (values: Float64Array, to: StoredType) => Float64Array
  /** Moments start as zeros, the moving average as a copy of the values. */
  state?: InterpreterState
  /** Tensors to return; others are dropped after their last use. Default: all. */
  keep?: (t: Tensor) => boolean
}

/**
 * Values of all kept tensors after one step, by name, with parameters and buffers as updated.
 * Throws EFF_INTERNAL where a value is missing or has the wrong number of elements.
 */
export function interpret(graph: Graph, options: InterpretOptions): Map<string, Float64Array> {
  const run = new Run(graph, options)
  graph.nodes.forEach((node, i) => {
    run.execute(node, i)
  })
  return run.results()
}

class Run {
  private readonly data = new Map<Tensor, RefTensor>()
  private readonly scalars: StepScalars
  private readonly rounding: boolean
  private readonly state: InterpreterState
  private readonly lastUse: Map<Tensor, number>
  private readonly typed = new WeakMap<Float64Array, StoredType>()

  constructor(
    private readonly graph: Graph,
    private readonly options: InterpretOptions,
  ) {
    this.scalars = { ...DEFAULT_SCALARS, ...options.scalars }
    this.rounding = options.storage === 'as-typed'
    this.state = options.state ?? emptyState()
    const written = new Set(graph.nodes.flatMap((node) => node.updates))
    for (const t of graph.tensors) {
      if (t.role !== 'input' && t.role !== 'parameter' && t.role !== 'buffer') continue
      const given = options.values.get(t.name)
      if (given?.length !== elements(t.shape)) {
        throw new EffnetError('EFF_INTERNAL', `${t.name} [${t.shape.join(', ')}] got ${given ? given.length : 'no'} values`)
      }
      const data = this.rounding ? rounded(given, t.dtype) : written.has(t) ? given.slice() : given
      if (this.rounding) this.typed.set(data, t.dtype)
      this.data.set(t, { shape: t.shape, data })
    }
    this.snapshotAverages()
    this.lastUse = new Map(graph.nodes.flatMap((node, i) => node.inputs.flatMap((t) => (t ? [[t, i] as const] : []))))
  }

  execute(node: Node, index: number): void {
    const inputs = node.inputs.map((t, i) => (t ? this.operand(node, t, i) : null))
    const updates = node.updates.map((t) => this.value(t))
    const touched: Float64Array[] = updates.map((t) => t.data)
    const outputs = opDef(node.op).reference(inputs, node.attrs, node.outputs, {
      scalars: this.scalars,
      updates,
      node,
      round: (t, dtype) => (this.rounding ? { shape: t.shape, data: this.stored(t.data, dtype) } : t),
      operand: (t) => this.inProduct(node, t),
      state: (arena, t) => {
        const values = this.stateOf(arena, t)
        touched.push(values)
        return values
      },
    })
    if (this.rounding) for (const values of touched) values.set(rounded(values, 'f32'))
    node.outputs.forEach((t, i) => {
      const value = outputs[i]
      if (!t) return
      if (value?.data.length !== elements(t.shape)) {
        throw new EffnetError('EFF_INTERNAL', `${node.op} "${node.name}": the reference made no [${t.shape.join(', ')}]`)
      }
      this.data.set(t, { shape: t.shape, data: this.rounding ? this.stored(value.data, t.dtype) : value.data })
    })
    if (this.options.keep) this.drop(node, index, this.options.keep)
  }

  results(): Map<string, Float64Array> {
    return new Map([...this.data].filter(([t]) => this.options.keep?.(t) ?? true).map(([t, value]) => [t.name, value.data]))
  }

  private value(t: Tensor): RefTensor {
    const value = this.data.get(t)
    if (!value) throw new EffnetError('EFF_INTERNAL', `${t.name} is read before it is made`)
    return value
  }

  /** A copy. What was rounded to the type already is as it is: no value is disturbed twice. */
  private stored(values: Float64Array, to: StoredType): Float64Array {
    const done = this.typed.get(values) === to
    const exact = done ? values.slice() : rounded(values, to)
    const stored = done ? exact : (this.options.disturb?.(exact, to) ?? exact)
    this.typed.set(stored, to)
    return stored
  }

  /** Depthwise convolutions of 16-bit images use weights rounded to their type; of others it is their product's to say. */
  private operand(node: Node, t: Tensor, i: number): RefTensor {
    const isWeights = node.op.startsWith('depthwise_conv2d') && OP_TABLE[node.op].inputs[i]?.name === 'weights'
    return isWeights && node.inputs[0]?.dtype !== 'f32' ? this.inProduct(node, this.value(t)) : this.value(t)
  }

  private inProduct(node: Node, t: RefTensor): RefTensor {
    const [src, diffDst] = node.inputs
    const ofPixels = node.op === 'input_conv2d_bwd_weights' ? diffDst : node.outputs[0]
    const images = (src?.dtype === 'u8' ? ofPixels : src)?.dtype
    const to = images !== 'f32' ? images : this.options.tf32 ? 'tf32' : undefined
    return this.rounding && to ? { shape: t.shape, data: this.stored(t.data, to) } : t
  }

  private stateOf(arena: StateArena, t: Tensor): Float64Array {
    let values = this.state[arena].get(t.name)
    if (!values) {
      values = new Float64Array(elements(t.shape))
      this.state[arena].set(t.name, values)
    }
    return values
  }

  /** An average that does not exist yet starts from the values before this step. */
  private snapshotAverages(): void {
    for (const node of this.graph.nodes) {
      const averaged = node.op === 'ema_update' ? node.inputs : node.attrs['ema'] === 1 ? node.updates : []
      for (const t of averaged) if (t && !this.state.ema.has(t.name)) this.state.ema.set(t.name, this.value(t).data.slice())
    }
  }

  private drop(node: Node, index: number, keep: (t: Tensor) => boolean): void {
    for (const t of [...node.inputs, ...node.outputs]) {
      if (t && (t.role === 'activation' || t.role === 'prepared') && !keep(t) && (this.lastUse.get(t) ?? -1) <= index)
        this.data.delete(t)
    }
  }
}

const word = new Uint32Array(1)
const float = new Float32Array(word.buffer)

/** To the nearest value with `bits` fewer mantissa bits than FP32, ties to even. */
function roundMantissa(x: number, bits: number): number {
  float[0] = x
  if (!Number.isFinite(float[0]!)) return float[0]!
  const half = 2 ** (bits - 1)
  const odd = (word[0]! >>> bits) & 1
  word[0] = ((word[0]! + half - 1 + odd) >>> bits) << bits
  return float[0]!
}

export const roundBf16 = (x: number): number => roundMantissa(x, 16)

export function roundF16(x: number): number {
  const smallest = 2 ** -24
  const value = Math.abs(x) < 2 ** -14 ? roundEven(x / smallest) * smallest : roundMantissa(x, 13)
  return Math.abs(value) > 65504 ? Math.sign(value) * Infinity : value
}

/** As the GPU's cvt.rna: ties away from zero. */
function roundTf32(x: number): number {
  float[0] = x
  if (!Number.isFinite(float[0]!)) return float[0]!
  word[0] = ((word[0]! + 0x1000) >>> 13) << 13
  return float[0]!
}

function roundEven(x: number): number {
  const floor = Math.floor(x)
  const rest = x - floor
  if (rest !== 0.5) return Math.round(x)
  return floor % 2 === 0 ? floor : floor + 1
}

const ROUND: Record<StoredType, (x: number) => number> = {
  f32: Math.fround,
  bf16: roundBf16,
  f16: roundF16,
  tf32: roundTf32,
  u8: (x) => Math.min(255, Math.max(0, roundEven(x))),
  i32: (x) => roundEven(x) | 0,
}

/** A copy, each value rounded to nearest in `to`, ties to even but for TF32. */
export const rounded = (values: Float64Array, to: StoredType): Float64Array => values.map(ROUND[to])
