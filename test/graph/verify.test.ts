/** Each invariant is broken once, by editing a good graph as no pass may. */
import { describe, expect, it } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import { print } from '../../ts/graph/print.js'
import { actCode, type Node, type Tensor } from '../../ts/graph/types.js'
import { verify } from '../../ts/graph/verify.js'
import { anyParam } from './values.js'

function small(): Graph {
  const graph = new Graph('small')
  const src = graph.input('src', [2, 4, 4, 3], 'f32')
  const weights = graph.parameter('w', [5, 1, 1, 3], anyParam([5, 1, 1, 3]))
  const c = [5]
  const attrs = { stride: 1, pad_t: 0, pad_l: 0, pad_b: 0, pad_r: 0 }
  const y = graph.node('conv2d', { src, weights }, attrs, { name: 'conv' })['dst']!
  const updates = [graph.buffer('mean', c, anyParam(c)), graph.buffer('var', c, anyParam(c))]
  const stats = graph.node('bn_stats', { src: y }, { eps: 1e-3, momentum: 0.1 }, { name: 'stats', updates })
  const [scale, shift] = [graph.parameter('scale', c, anyParam(c)), graph.parameter('shift', c, anyParam(c))]
  const norm = { src: y, mean: stats['mean']!, inv_std: stats['inv_std']!, scale, shift }
  const x = graph.node('bn_apply', norm, { batch_stats: 1 }, { name: 'bn' })['dst']!
  graph.node('activation', { src: x }, { act: actCode('silu') }, { name: 'act' })
  return graph
}

const edit = (graph: Graph, at: number, changes: Partial<Node>): void => {
  graph.nodes[at] = { ...graph.nodes[at]!, ...changes }
}

/** The graph with its nodes in another order. */
const reorder = (graph: Graph, order: number[]): void => {
  const nodes = order.map((i, id) => ({ ...graph.nodes[i]!, id }))
  graph.nodes.splice(0, graph.nodes.length, ...nodes)
}

describe('verify', () => {
  it('accepts a graph as built', () => {
    expect(() => verify(small())).not.toThrow()
  })

  it.each<[string, (graph: Graph) => void, RegExp]>([
    ['use before definition', (g) => reorder(g, [1, 0, 2, 3]), /bn_stats "stats": reads conv before it is made/],
    ['two makers', (g) => edit(g, 3, { outputs: [g.find('bn')] }), /writes bn, which "bn" made/],
    [
      'another shape',
      (g) => edit(g, 0, { outputs: [{ ...g.find('conv'), shape: [1] }] }),
      /conv is f32\[1\], not f32\[2,4,4,5\]/,
    ],
    ['writing an input', (g) => edit(g, 3, { outputs: [g.find('src')] }), /output src is/],
    ['a foreign tensor', (g) => edit(g, 3, { inputs: [{ ...g.find('bn') }] }), /another graph/],
    ['a missing input', (g) => edit(g, 3, { inputs: [null] }), /input src is missing/],
    ['too few inputs', (g) => edit(g, 0, { inputs: [g.find('src')] }), /1 inputs for ports src,weights/],
    ['wrong attributes', (g) => edit(g, 3, { attrs: {} }), /attributes {2}instead of act/],
    ['a clash of names', (g) => edit(g, 3, { name: 'bn' }), /name bn is used twice/],
    [
      'constants taken for batch statistics',
      (g) => edit(g, 2, { inputs: g.nodes[2]!.inputs.with(1, g.find('mean')) }),
      /are no statistics of conv/,
    ],
    ['batch statistics taken for constants', (g) => edit(g, 2, { attrs: { batch_stats: 0 } }), /batch_stats = 0 with statistics/],
    ['a second update', (g) => edit(g, 1, { updates: [g.find('mean'), g.find('mean')] }), /updates mean a second time/],
    ['updating an activation', (g) => edit(g, 1, { updates: [g.find('stats:mean'), g.find('var')] }), /updates stats:mean/],
    ['preparing from activations', (g) => edit(g, 3, { prepare: true }), /reads bn \(activation\)/],
    ['a gradient of nothing', (g) => retype(g, 'act', { role: 'gradient' }), /gradient act has no parameter/],
    ['a prepared result of a step', (g) => retype(g, 'act', { role: 'prepared' }), /act is prepared/],
  ])('refuses %s', (_what, damage, message) => {
    const graph = small()
    damage(graph)
    expect(() => verify(graph)).toThrow(message)
  })

  it('refuses to read a weight after its update', () => {
    const graph = new Graph('late')
    const w = graph.parameter('w', [1], anyParam([1]))
    const grad = graph.tensor('g', [1], 'f32', 'gradient', { of: w })
    graph.node('fill', {}, { value: 1 }, { name: 'fill', into: { dst: grad } })
    graph.node('optimizer_sgd', { grad: [grad] }, { decay_mult: 0, nesterov: 0, ema: 0 }, { name: 'sgd', updates: [w] })
    verify(graph)
    graph.node('activation', { src: w }, { act: actCode('relu') }, { name: 'late' })
    expect(() => verify(graph)).toThrow('reads w after its update')
  })
})

function retype(graph: Graph, name: string, changes: Partial<Tensor>): void {
  const t: Tensor = { ...graph.find(name), ...changes }
  graph.tensors[t.id] = t
  const at = graph.nodes.findIndex((n) => n.outputs.some((o) => o?.id === t.id))
  edit(graph, at, { outputs: graph.nodes[at]!.outputs.map((o) => (o?.id === t.id ? t : o)) })
}

it('print shows ops, shapes, attributes and marks', () => {
  const graph = small()
  graph.node(
    'activation',
    { src: graph.find('bn') },
    { act: actCode('silu') },
    { name: 'again', backward: true, recomputed: true },
  )
  const lines = print(graph).split('\n')
  expect(lines[0]).toBe('graph small: 5 nodes, 12 tensors')
  expect(lines[1]).toContain('conv: conv2d(src=src:f32[2x4x4x3] weights=w:f32[5x1x1x3]) {stride=1')
  expect(lines[1]).toContain('-> dst=conv:f32[2x4x4x5] 0.000960 MFLOP')
  expect(lines[2]).toContain('updates mean var')
  expect(lines[5]).toContain('{act=silu}')
  expect(lines[5]).toContain('[recomputed]')
})
