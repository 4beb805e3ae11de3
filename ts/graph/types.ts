/**
 * The IR: a graph is a list of nodes in execution order over tensors with static shapes. No data, no device.
 * Images are NHWC, dense weights OHWI, depthwise weights HWC, matrices [out, in].
 */
import type { OpName } from './op_table.js'

/** Storage types of tensors. `bf16` and `f16` round to nearest even when a value is stored. */
export type DType = 'f32' | 'bf16' | 'f16' | 'u8' | 'i32'

export type Shape = readonly number[]

/**
 * - `input`: given each step (images, labels)
 * - `parameter`: trained, or frozen when `trainable` is false; FP32
 * - `buffer`: state that is not trained (BN running statistics); FP32
 * - `activation`: lives within a step
 * - `gradient`: of a parameter, FP32; lies in the gradient arena at the parameter's offset
 * - `prepared`: made from weights by the prepare program, kept between steps (folded weights)
 * - `output`: read by the host after a step
 */
export type TensorRole = 'input' | 'parameter' | 'buffer' | 'activation' | 'gradient' | 'prepared' | 'output'

/** How a parameter's stored layout relates to the OIHW layout of PyTorch checkpoints. */
export type ParamLayout = 'vector' | 'matrix' | 'ohwi' | 'hwc'

/** What initialisation and weight decay need to know about a parameter. */
export type ParamKind =
  | 'conv'
  | 'depthwise'
  | 'se_weights'
  | 'se_bias'
  | 'linear_weights'
  | 'linear_bias'
  | 'bn_scale'
  | 'bn_shift'
  | 'bn_mean'
  | 'bn_var'

export interface ParamInfo {
  readonly kind: ParamKind
  readonly layout: ParamLayout
  /** Shape in timm and torchvision checkpoints, e.g. [O, I, kh, kw]; SE convolutions are [O, I, 1, 1] there. */
  readonly torchShape: Shape
}

export interface Tensor {
  readonly id: number
  readonly name: string
  readonly shape: Shape
  readonly dtype: DType
  readonly role: TensorRole
  /** Of parameters and buffers. */
  readonly param?: ParamInfo
  /** Of parameters: whether gradients are wanted. */
  readonly trainable?: boolean
  /** Of gradients: the parameter. */
  readonly of?: Tensor
}

export interface Node {
  readonly id: number
  readonly op: OpName
  /** Unique in the graph, e.g. `blocks.1.0.conv_pw`; the name in dumps, errors and profiles. */
  readonly name: string
  /** Positions as in the op table; null = absent optional. Variadic ports follow the fixed ones. */
  readonly inputs: readonly (Tensor | null)[]
  readonly outputs: readonly (Tensor | null)[]
  /** Written in place. */
  readonly updates: readonly Tensor[]
  readonly attrs: Readonly<Record<string, number>>
  /** Runs when weights changed, not every step. */
  readonly prepare: boolean
  /** Belongs to the backward part (made by autodiff, or repeated there). */
  readonly backward: boolean
  /** A forward node repeated in the backward part to save memory. */
  readonly recomputed: boolean
}

export const elements = (shape: Shape): number => shape.reduce((product, d) => product * d, 1)

const DTYPE_BYTES: Record<DType, number> = { f32: 4, bf16: 2, f16: 2, u8: 1, i32: 4 }
export const dtypeBytes = (dtype: DType): number => DTYPE_BYTES[dtype]
export const tensorBytes = (t: Tensor): number => elements(t.shape) * dtypeBytes(t.dtype)

/** Codes of the `act` attribute; the order is part of the plan format (native/plan/format.h). */
export const ACTIVATIONS = ['identity', 'silu', 'relu', 'relu6', 'sigmoid'] as const
export type Activation = (typeof ACTIVATIONS)[number]
export const actCode = (act: Activation): number => ACTIVATIONS.indexOf(act)
