/** What one op is: shape rule, gradient rule, float64 reference. One file per op, or per op and its backward, in this folder. */
import type { OpName } from '../op_table.js'
import type { DType, Node, Shape, Tensor } from '../types.js'

export interface OutputSpec {
  shape: Shape
  dtype: DType
}

export interface InferHints {
  /** Shapes of outputs that the inputs do not determine. */
  shapes?: readonly (Shape | null)[] | undefined
  /** Storage type of the output where the op leaves it open. */
  dtype?: DType | undefined
  /** Operands written in place; checked when given. */
  updates?: readonly Tensor[] | undefined
}

export type Attrs = Readonly<Record<string, number>>
export type Inputs = readonly (Tensor | null)[]

/** A tensor with data in the float64 interpreter, row-major. Values of 16-bit tensors are already rounded to their type. */
export interface RefTensor {
  readonly shape: Shape
  readonly data: Float64Array
}

/** Arenas that mirror the weights: optimizer state and moving average. */
export type StateArena = 'moment0' | 'moment1' | 'ema'

export interface RefContext {
  /** As the step's scalar block (ts/runtime/scalars.ts); `seed` and `step` feed Philox. */
  readonly scalars: Readonly<Record<string, number>>
  /** In-place operands, in the order of `node.updates`; written by the reference. */
  readonly updates: readonly RefTensor[]
  readonly node: Node
  /** Rounds to a storage type where the interpreter keeps tensors as typed; otherwise the tensor itself. */
  round(t: RefTensor, dtype: DType): RefTensor
  /** What a product of this op's values reads of `t`: rounded to the type of its images, or to TF32 where they are FP32 and so asked for. */
  operand(t: RefTensor): RefTensor
  /** The values that belong to parameter or buffer `t` in an arena; written by the reference. */
  state(arena: StateArena, t: Tensor): Float64Array
}

/** The gradients that a rule got or gave: by output or input port position, null = none. */
export type Diffs = readonly (Tensor | null)[]

/** What a gradient rule may use: it appends backward nodes and returns the gradient of each input (null = none). */
export interface GradContext {
  readonly node: Node
  /** Gradient of each output; null where nothing depends on it. */
  readonly diffOutputs: Diffs
  /** Whether `node` makes the loss itself, whose gradient is 1. */
  readonly isRoot: boolean
  /** A later node that handed its work to this one (see `handTo`). */
  readonly handed: HandedNode | null
  /** Whether the gradient of input i is wanted. */
  wants(i: number): boolean
  /**
   * The tensor that receives the gradient of input i, for `into` of `emit`: of role `gradient` where the input is a parameter
   * that this node alone reads. Undefined where a new activation is to be made.
   */
  target(i: number): Tensor | undefined
  /** Appends the backward node `<node name>.<suffix>`; as `Graph.node`. */
  emit(
    op: OpName,
    suffix: string,
    inputs: Readonly<Record<string, Tensor | null | undefined>>,
    attrs: Attrs,
    options?: EmitOptions,
  ): Record<string, Tensor>
  /** Forward nodes that read `t`, in order. */
  consumers(t: Tensor): readonly Node[]
  /**
   * Asks that the rule of an earlier node makes what this rule then returns as null; it finds this node in `handed`. False where
   * that node has been asked already. `made` is what this rule has emitted for it.
   */
  handTo(earlier: Node, made?: Tensor): boolean
}

export interface HandedNode {
  readonly node: Node
  readonly diffOutputs: Diffs
  readonly made: Tensor | undefined
}

export interface EmitOptions {
  shapes?: readonly (Shape | null)[]
  dtype?: DType
  want?: readonly string[]
  /** Undefined entries are ignored. */
  into?: Readonly<Record<string, Tensor | undefined>>
}

export interface OpDef {
  readonly name: OpName
  /** Shapes and dtypes of the outputs, in table order. Throws EFF_INTERNAL with both shapes on a mismatch. */
  infer(inputs: Inputs, attrs: Attrs, hints: InferHints): (OutputSpec | null)[]
  /** Absent for ops that are never differentiated (backward ops, inference-only ops, optimizers). */
  grad?(ctx: GradContext): (Tensor | null)[]
  /** Float64 values of the outputs, in table order; rounding to storage types is the interpreter's work. */
  reference(
    inputs: readonly (RefTensor | null)[],
    attrs: Attrs,
    outputs: readonly (OutputSpec | null)[],
    ctx: RefContext,
  ): (RefTensor | null)[]
  /** Multiply-adds count 2; 0 where bytes alone matter. */
  flops?(node: Node): number
}
