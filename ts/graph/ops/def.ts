/** What one op is: shape rule, gradient rule, float64 reference. One file per op in this folder. */
import type { Graph } from '../graph.js'
import type { OpName } from '../op_table.js'
import type { DType, Node, Shape, Tensor } from '../types.js'

export interface OutputSpec {
  shape: Shape
  dtype: DType
}

export interface InferHints {
  shapes?: (Shape | null)[] | undefined
  dtype?: DType | undefined
}

export type Attrs = Readonly<Record<string, number>>

/** A tensor with data in the float64 interpreter. Values of 16-bit tensors are already rounded to their type. */
export interface RefTensor {
  readonly shape: Shape
  readonly data: Float64Array
}

export interface RefContext {
  /** As the step's scalar block (ts/runtime/scalars.ts); `seed` and `step` feed Philox. */
  readonly scalars: Readonly<Record<string, number>>
  /** In-place operands, in the order of `node.updates`; written by the reference. */
  readonly updates: readonly RefTensor[]
  readonly node: Node
}

/** What a gradient rule may use: it adds nodes to `graph` and returns the gradient of each input (null = none). */
export interface GradContext {
  readonly graph: Graph
  readonly node: Node
  /** Gradient of each output; null where nothing depends on it. */
  readonly diffOutputs: readonly (Tensor | null)[]
  /** Whether the gradient of input i is wanted. */
  wants(i: number): boolean
  /** The tensor that receives the gradient of parameter `p` (role `gradient`), created at first use. */
  gradientOf(p: Tensor): Tensor
}

export interface OpDef {
  readonly name: OpName
  /** Shapes and dtypes of the outputs, in table order. Throws EFF_INTERNAL with both shapes on a mismatch. */
  infer(inputs: readonly (Tensor | null)[], attrs: Attrs, hints: InferHints): (OutputSpec | null)[]
  /** Absent for ops that are never differentiated (backward ops, optimizers). */
  grad?(ctx: GradContext): (Tensor | null)[]
  /** Float64 values of the outputs, in table order; rounding to storage types is the interpreter's work. */
  reference(inputs: readonly (RefTensor | null)[], attrs: Attrs, outputs: readonly (OutputSpec | null)[], ctx: RefContext): (RefTensor | null)[]
  /** Multiply-adds count 2; 0 where bytes alone matter. */
  flops?(node: Node): number
}
