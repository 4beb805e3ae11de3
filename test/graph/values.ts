/** Seeded data for graphs in tests. */
import type { Graph } from '../../ts/graph/graph.js'
import { elements, type ParamInfo, type Shape, type Tensor } from '../../ts/graph/types.js'

/** Uniform in [-1, 1), reproducible. */
export function uniform(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 31 - 1
  }
}

export const fillBy = (shape: Shape, next: () => number): Float64Array => Float64Array.from({ length: elements(shape) }, next)

/** A parameter of no particular kind, for graphs that test one op. */
export const anyParam = (shape: Shape): ParamInfo => ({ kind: 'conv', layout: 'vector', torchShape: shape })

const isGiven = (t: Tensor): boolean => t.role === 'input' || t.role === 'parameter' || t.role === 'buffer'

/** Values of a network at initialisation scale: activations keep their size from layer to layer. Labels count up from 0. */
export function networkValues(graph: Graph, seed: number): Map<string, Float64Array> {
  const next = uniform(seed)
  const fan = (t: Tensor): number => (t.param?.layout === 'hwc' ? t.shape[0]! * t.shape[1]! : elements(t.shape) / t.shape[0]!)
  const maker = (t: Tensor): ((i: number) => number) => {
    if (t.dtype === 'u8') return () => Math.floor((next() + 1) * 127.99)
    if (t.dtype === 'i32') return (i) => i
    if (t.param?.kind === 'bn_var') return () => 1 + 0.25 * next()
    if (t.param?.kind === 'bn_scale') return () => 1 + 0.1 * next()
    if (t.shape.length < 2) return () => 0.1 * next()
    return () => (2 * next()) / Math.sqrt(fan(t))
  }
  return new Map(
    graph.tensors.filter(isGiven).map((t) => {
      const make = maker(t)
      return [t.name, Float64Array.from({ length: elements(t.shape) }, (_, i) => make(i))]
    }),
  )
}

export function maxAbs(values: Float64Array): number {
  let max = 0
  for (const v of values) max = Math.max(max, Math.abs(v))
  return max
}

/** Infinity where one of them is NaN, so that no maximum loses it. */
export function difference(a: number, b: number): number {
  const apart = Math.abs(a - b)
  return Number.isNaN(apart) ? Infinity : apart
}

export function maxDifference(a: Float64Array, b: Float64Array): number {
  if (a.length !== b.length) return Infinity
  let max = 0
  for (let i = 0; i < a.length; i++) max = Math.max(max, difference(a[i]!, b[i]!))
  return max
}
