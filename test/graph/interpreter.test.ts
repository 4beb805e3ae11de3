import { describe, expect, it } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import { emptyState, interpret, roundBf16, rounded, roundF16 } from '../../ts/graph/interpreter.js'
import { actCode } from '../../ts/graph/types.js'
import { anyParam } from './values.js'

const PAD0 = { stride: 1, pad_t: 0, pad_l: 0, pad_b: 0, pad_r: 0 }

describe('rounding', () => {
  it('to bf16, ties to even', () => {
    expect(roundBf16(1 + 2 ** -8)).toBe(1)
    expect(roundBf16(1 + 3 * 2 ** -8)).toBe(1 + 2 ** -6)
    expect(roundBf16(1 + 2 ** -8 + 2 ** -16)).toBe(1 + 2 ** -7)
    expect(roundBf16(-3.140625)).toBe(-3.140625)
    expect(roundBf16(3.4e38)).toBe(Infinity)
    expect(roundBf16(Number.NaN)).toBeNaN()
  })

  it('to f16, with its small range', () => {
    expect(roundF16(1 + 2 ** -11)).toBe(1)
    expect(roundF16(1 + 3 * 2 ** -11)).toBe(1 + 2 ** -9)
    expect(roundF16(65504)).toBe(65504)
    expect(roundF16(65520)).toBe(Infinity)
    expect(roundF16(2 ** -24)).toBe(2 ** -24)
    expect(roundF16(2 ** -25)).toBe(0)
    expect(roundF16(3 * 2 ** -25)).toBe(2 ** -23)
  })

  it('to integers', () => {
    expect([...rounded(Float64Array.of(0.5, 1.5, -3, 300), 'u8')]).toEqual([0, 2, 0, 255])
  })
})

describe('interpret', () => {
  const pointwise = (dtype: 'f32' | 'bf16' | 'f16') => {
    const graph = new Graph('pointwise')
    const src = graph.input('src', [1, 1, 1, 1], dtype)
    const weights = graph.parameter('w', [1, 1, 1, 1], anyParam([1]))
    graph.node('conv2d', { src, weights }, PAD0, { name: 'dst' })
    return graph
  }
  const values = () =>
    new Map([
      ['src', Float64Array.of(1)],
      ['w', Float64Array.of(1 + 2 ** -8 + 2 ** -30)],
    ])

  it('keeps float64 unless asked', () => {
    expect(interpret(pointwise('bf16'), { values: values() }).get('dst')![0]).toBe(1 + 2 ** -8 + 2 ** -30)
  })

  it('rounds tensors as typed, and weights to the type of 16-bit images', () => {
    const options = { values: values(), storage: 'as-typed' } as const
    expect(interpret(pointwise('f32'), options).get('dst')![0]).toBe(1 + 2 ** -8)
    expect(interpret(pointwise('bf16'), options).get('dst')![0]).toBe(1)
    expect(interpret(pointwise('f16'), options).get('dst')![0]).toBe(1 + 2 ** -8)
    const finer = new Map(options.values).set('w', Float64Array.of(1 + 2 ** -11))
    expect(interpret(pointwise('f16'), { ...options, values: finer }).get('dst')![0]).toBe(1)
    expect(options.values.get('w')![0]).toBe(1 + 2 ** -8 + 2 ** -30)
  })

  it('pools the values as stored', () => {
    const graph = new Graph('pooled')
    const src = graph.input('src', [1, 1, 2, 1], 'bf16')
    const weights = graph.parameter('w', [1, 1, 1], anyParam([1]))
    const bias = graph.parameter('b', [1], anyParam([1]))
    const attrs = { ...PAD0, act: actCode('identity') }
    graph.node('depthwise_conv2d_bias_act', { src, weights, bias }, attrs, { name: 'dw', want: ['pooled'] })
    const given = new Map([
      ['src', Float64Array.of(1, 1)],
      ['w', Float64Array.of(1)],
      ['b', Float64Array.of(2 ** -8)],
    ])
    expect(interpret(graph, { values: given }).get('dw:pooled')![0]).toBe(1 + 2 ** -8)
    expect(interpret(graph, { values: given, storage: 'as-typed' }).get('dw:pooled')![0]).toBe(1)
  })

  it('rounds what a product reads and nobody stores', () => {
    const graph = new Graph('gated')
    const src = graph.input('src', [1, 1, 1, 2], 'bf16')
    const weights = graph.parameter('w', [1, 1, 1, 2], anyParam([1, 2]))
    const [bias, gate] = [graph.parameter('b', [1], anyParam([1])), graph.input('gate', [1, 2], 'f32')]
    graph.node('conv2d_bias_act', { src, weights, bias, gate }, { ...PAD0, act: actCode('identity') }, { name: 'dst' })
    const x = 1 + 2 ** -7
    const values = new Map([
      ['src', Float64Array.of(x, 1 + 2 ** -6)],
      ['gate', Float64Array.of(x, 1)],
      ['w', Float64Array.of(1, -1)],
      ['b', Float64Array.of(0)],
    ])
    // x * x is 1 + 2^-6 + 2^-14.
    expect(interpret(graph, { values }).get('dst')![0]).toBe(2 ** -14)
    expect(interpret(graph, { values, storage: 'as-typed' }).get('dst')![0]).toBe(0)
  })

  it('rounds the weights of depthwise convolutions, forward and backward', () => {
    const graph = new Graph('depthwise')
    const [src, diff] = [graph.input('src', [1, 1, 1, 1], 'bf16'), graph.input('diff', [1, 1, 1, 1], 'bf16')]
    const weights = graph.parameter('w', [1, 1, 1], anyParam([1]))
    const acts = { src_act: actCode('identity'), act: actCode('identity') }
    graph.node('depthwise_conv2d', { src, weights }, PAD0, { name: 'forward' })
    graph.node('depthwise_conv2d_bwd_data', { diff_dst: diff, weights }, PAD0, { name: 'data', shapes: [[1, 1, 1, 1]] })
    graph.node('depthwise_conv2d_bwd', { src, diff_dst: diff, weights }, { ...PAD0, ...acts }, { name: 'both' })
    // Times the weights as they are 1.75, to the nearest bf16, is a unit more.
    const [w, x] = [1 + 2 ** -9 + 2 ** -10, 1.75]
    expect(roundBf16(w * x)).not.toBe(x)
    const values = new Map([
      ['src', Float64Array.of(x)],
      ['diff', Float64Array.of(x)],
      ['w', Float64Array.of(w)],
    ])
    const made = interpret(graph, { values, storage: 'as-typed' })
    for (const node of graph.nodes) expect(made.get(node.outputs[0]!.name)![0]).toBe(x)
  })

  it('reads FP32 values in TF32 where products may, and nowhere else', () => {
    const graph = new Graph('tf32')
    const [src, diff] = [graph.input('src', [1, 2], 'f32'), graph.input('diff', [1, 1], 'f32')]
    graph.node('linear_bwd_weights', { src, diff_dst: diff }, {}, { name: 'bwd', want: ['diff_bias'], shapes: [[1, 2], [1]] })
    const [tie, below] = [1 + 2 ** -11, 1 + 2 ** -11 - 2 ** -20]
    const values = new Map([
      ['src', Float64Array.of(-tie, below)],
      ['diff', Float64Array.of(tie)],
    ])
    const made = interpret(graph, { values, storage: 'as-typed', tf32: true })
    const [weights, bias] = graph.nodes[0]!.outputs
    expect([...made.get(weights!.name)!]).toEqual([-((1 + 2 ** -10) ** 2), 1 + 2 ** -10])
    expect([...made.get(bias!.name)!]).toEqual([tie])
  })

  it('leaves the given values alone and returns updated ones', () => {
    const graph = new Graph('stats')
    const src = graph.input('src', [1, 1, 2, 1], 'f32')
    const updates = [graph.buffer('mean', [1], anyParam([1])), graph.buffer('var', [1], anyParam([1]))]
    graph.node('bn_stats', { src }, { eps: 0, momentum: 0.5 }, { name: 'stats', updates })
    const given = new Map([
      ['src', Float64Array.of(2, 4)],
      ['mean', Float64Array.of(1)],
      ['var', Float64Array.of(1)],
    ])
    const result = interpret(graph, { values: given })
    expect([result.get('mean')![0], result.get('var')![0]]).toEqual([2, 1.5])
    expect(given.get('mean')![0]).toBe(1)
  })

  it('returns what is kept alone', () => {
    const graph = pointwise('f32')
    const kept = interpret(graph, { values: values(), keep: (t) => t.name === 'dst' })
    expect([...kept.keys()]).toEqual(['dst'])
  })

  it('keeps optimizer state in the given maps', () => {
    const graph = new Graph('momentum')
    const w = graph.parameter('w', [1], anyParam([1]))
    const into = { dst: graph.tensor('g', [1], 'f32', 'gradient', { of: w }) }
    const gradient = graph.node('fill', {}, { value: 1 }, { name: 'fill', into })['dst']!
    graph.node('optimizer_sgd', { grad: [gradient] }, { decay_mult: 0, nesterov: 0, ema: 0 }, { name: 'sgd', updates: [w] })
    const state = emptyState()
    const scalars = { lr: 1, momentum: 0.5 }
    const first = interpret(graph, { values: new Map([['w', Float64Array.of(0)]]), scalars, state })
    const second = interpret(graph, { values: first, scalars, state })
    expect([first.get('w')![0], second.get('w')![0], state.moment0.get('w')![0]]).toEqual([-1, -2.5, 1.5])
  })

  it('names a value that is missing', () => {
    expect(() => interpret(pointwise('f32'), { values: new Map() })).toThrow('src [1, 1, 1, 1] got no values')
  })
})
