/** Helpers of shape rules and references. A message names the ports and shapes; `Graph.node` prefixes op and node name. */
import { EffnetError } from '../../errors.js'
import { ACTIVATIONS, type DType, elements, type Shape, type Tensor } from '../types.js'
import type { Attrs, InferHints, Inputs, OutputSpec, RefTensor } from './def.js'

export function fail(why: string): never {
  throw new EffnetError('EFF_INTERNAL', why)
}

export const show = (t: { shape: Shape; dtype?: DType }): string => `${t.dtype ?? ''}[${t.shape.join(', ')}]`

/** A required operand: its presence is checked by `Graph.node`. */
export function at<T>(operands: readonly (T | null)[], i: number): T {
  return operands[i] ?? fail(`operand ${i} is missing`)
}

export function attr(attrs: Attrs, name: string): number {
  return attrs[name] ?? fail(`attribute ${name} is missing`)
}

export const spec = (shape: Shape, dtype: DType): OutputSpec => ({ shape: [...shape], dtype })

export function expectRank(port: string, t: Tensor, rank: number): void {
  if (t.shape.length !== rank) fail(`${port} ${show(t)} must have rank ${rank}`)
}

export function expectType(port: string, t: Tensor, ...dtypes: DType[]): void {
  if (!dtypes.includes(t.dtype)) fail(`${port} ${show(t)} must be ${dtypes.join(' or ')}`)
}

/** NHWC images in the activation type. */
export function expectImages(port: string, t: Tensor): void {
  expectRank(port, t, 4)
  expectType(port, t, 'f32', 'bf16', 'f16')
}

export const sameShape = (a: Shape, b: Shape): boolean => a.length === b.length && a.every((d, i) => d === b[i])

export function expectSame(portA: string, a: Tensor, portB: string, b: Tensor): void {
  if (!sameShape(a.shape, b.shape) || a.dtype !== b.dtype) fail(`${portA} ${show(a)} and ${portB} ${show(b)} must be alike`)
}

/** FP32 [channels of `of`] */
export function expectChannels(port: string, t: Tensor | null | undefined, ofPort: string, of: Tensor): void {
  if (!t) return
  const c = of.shape[of.shape.length - 1]
  if (t.shape.length !== 1 || t.shape[0] !== c || t.dtype !== 'f32')
    fail(`${port} ${show(t)} must be f32[${c}] as ${ofPort} is ${show(of)}`)
}

/** FP32 [N, C] of images [N, H, W, C]. */
export function expectPerSample(port: string, t: Tensor | null | undefined, ofPort: string, of: Tensor): void {
  if (!t) return
  const [n, , , c] = of.shape
  if (t.shape.length !== 2 || t.shape[0] !== n || t.shape[1] !== c || t.dtype !== 'f32') {
    fail(`${port} ${show(t)} must be f32[${n}, ${c}] as ${ofPort} is ${show(of)}`)
  }
}

export function hintedShape(hints: InferHints, port: string, i = 0): Shape {
  return hints.shapes?.[i] ?? fail(`the shape of ${port} does not follow from the inputs; it must be given`)
}

export function expectAct(attrs: Attrs): void {
  const act = attr(attrs, 'act')
  if (!Number.isInteger(act) || act < 0 || act >= ACTIVATIONS.length)
    fail(`act ${act} is no activation code (0..${ACTIVATIONS.length - 1})`)
}

export function expectRate(attrs: Attrs): void {
  const rate = attr(attrs, 'drop_rate')
  const stream = attr(attrs, 'rng_stream')
  if (!(rate >= 0 && rate < 1)) fail(`drop_rate ${rate} is outside [0, 1)`)
  if (!Number.isInteger(stream) || stream < 0 || stream > 0xffffffff) fail(`rng_stream ${stream} is no 32-bit integer`)
}

export function expectFlag(attrs: Attrs, name: string): void {
  const value = attr(attrs, name)
  if (value !== 0 && value !== 1) fail(`${name} is ${value}, not 0 or 1`)
}

/** Shape rule of ops whose single output is as their first input. */
export const sameAsFirst = (inputs: Inputs): OutputSpec[] => {
  const src = at(inputs, 0)
  return [spec(src.shape, src.dtype)]
}

export const refTensor = (shape: Shape, data = new Float64Array(elements(shape))): RefTensor => ({ shape, data })

/** [N, H, W, C] of images, or of [N, C] with H = W = 1. */
export function nhwc(shape: Shape): [n: number, h: number, w: number, c: number] {
  const [n = 1, ...rest] = shape
  return rest.length === 3 ? [n, rest[0]!, rest[1]!, rest[2]!] : [n, 1, 1, rest[0] ?? 1]
}
