/**
 * How far rounding moves what a graph makes: the limits of tests that hold a whole step to float64. A kernel that is right may round a
 * stored value, or what a product reads, to the one or the other neighbour, and sums in another order; so in each study the float64
 * interpreter moves every such value by up to a unit in the last place of its type, and what a result moves by is what it may be off by.
 */
import type { Graph } from '../../ts/graph/graph.js'
import { type InterpretOptions, interpret, type StoredType } from '../../ts/graph/interpreter.js'
import { maxAbs, maxDifference, uniform } from '../graph/values.js'

/** Of FP32 four units: sums of many terms, and the GPU's exponential and root, are off by some. */
const SHARE: Record<StoredType, number> = { f32: 2 ** -21, tf32: 2 ** -10, bf16: 2 ** -7, f16: 2 ** -10, u8: 0, i32: 0 }
/** Distance of the smallest values of f16. */
const SMALLEST_F16 = 2 ** -24
const STUDIES = 12

export interface Study {
  exact: Map<string, Float64Array>
  /** Of a tensor: the largest difference in any of the studies. */
  limit: (name: string) => number
}

/** `options`: but for the state, which is made anew for each run. */
export function studyRounding(graph: Graph, options: Omit<InterpretOptions, 'state' | 'disturb' | 'storage'>): Study {
  const run = (more: Partial<InterpretOptions>) => interpret(graph, { ...options, storage: 'as-typed', ...more })
  const exact = run({})
  const largest = new Map<string, number>()
  for (let study = 0; study < STUDIES; study++) {
    const next = uniform(1000 + 77 * study)
    const disturb = (values: Float64Array, to: StoredType): Float64Array =>
      values.map((x) => x + next() * Math.max(SHARE[to] * Math.abs(x), to === 'f16' && x !== 0 ? SMALLEST_F16 : 0))
    const moved = run({ disturb })
    for (const [name, values] of exact)
      largest.set(name, Math.max(largest.get(name) ?? 0, maxDifference(moved.get(name)!, values)))
  }
  // What does not move at all is still stored in FP32.
  return { exact, limit: (name) => largest.get(name)! + 2 ** -22 * maxAbs(exact.get(name)!) }
}
