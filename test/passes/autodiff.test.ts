import { describe, expect, it } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import { interpret } from '../../ts/graph/interpreter.js'
import { actCode, type Tensor } from '../../ts/graph/types.js'
import { verify } from '../../ts/graph/verify.js'
import { buildEfficientNet, getModelConfig } from '../../ts/nn/index.js'
import { autodiff, eliminateDead, markOutputs, recompute } from '../../ts/passes/index.js'
import { trainProgram } from '../../ts/runtime/programs.js'
import { anyParam, networkValues } from '../graph/values.js'
import { expectEqual } from './random_graph.js'

function network(frozen?: (name: string) => boolean): { graph: Graph; loss: Tensor } {
  const graph = new Graph('net')
  const config = getModelConfig('efficientnet_b0', { numClasses: 5 })
  const net = buildEfficientNet(graph, config, {
    batch: 2,
    height: 32,
    width: 32,
    mode: 'train',
    dtype: 'f32',
    ...(frozen && { frozen }),
  })
  const labels = graph.input('labels', [2], 'i32')
  const out = graph.node('softmax_cross_entropy', { logits: net.logits, labels }, { label_smoothing: 0 }, { name: 'loss' })
  return { graph, loss: out['loss']! }
}

const backward = (graph: Graph) => graph.nodes.filter((n) => n.backward)

describe('autodiff', () => {
  it('makes the gradient of every trainable parameter, and nothing that nobody wants', () => {
    const { graph, loss } = network()
    const gradients = autodiff(graph, loss)
    verify(graph)
    expect(new Set(gradients.keys())).toEqual(new Set(graph.parameters))
    for (const [p, g] of gradients) expect([g.role, g.of, g.name]).toEqual(['gradient', p, `grad:${p.name}`])
    expect(graph.nodes.map((n) => n.name)).not.toContain('conv_stem.bwd_data')
    const live = eliminateDead(markOutputs(graph, ['loss:loss']))
    expect(live.nodes).toHaveLength(graph.nodes.length)
  })

  it('appends: the forward part stays in front', () => {
    const { graph, loss } = network()
    const before = graph.nodes.map((n) => n.name)
    autodiff(graph, loss)
    expect(graph.nodes.slice(0, before.length).map((n) => n.name)).toEqual(before)
    expect(graph.nodes.findIndex((n) => n.backward)).toBe(before.length)
    expect(backward(graph)).toHaveLength(graph.nodes.length - before.length)
  })

  it('of a frozen network but for its classifier stops there', () => {
    const { graph, loss } = network((name) => !name.startsWith('classifier'))
    const gradients = autodiff(graph, loss)
    expect([...gradients.keys()].map((p) => p.name)).toEqual(['classifier.weight', 'classifier.bias'])
    expect(backward(graph).map((n) => n.op)).toEqual(['linear_bwd_weights'])
  })

  it('goes no deeper than the first trainable layer', () => {
    const { graph, loss } = network((name) => !/^(classifier|conv_head|bn2)/.test(name))
    autodiff(graph, loss)
    expect(
      backward(graph)
        .map((n) => n.name)
        .filter((n) => n.startsWith('blocks')),
    ).toEqual([])
    expect(backward(graph).at(-1)!.name).toBe('conv_head.bwd_weights')
  })

  it('takes the choice of parameters from the caller', () => {
    const { graph, loss } = network()
    const gradients = autodiff(graph, loss, { trainable: (p) => p.name === 'bn2.weight' })
    verify(graph)
    expect([...gradients.keys()].map((p) => p.name)).toEqual(['bn2.weight'])
    expect(backward(graph).map((n) => n.op)).toEqual([
      'linear_bwd_data',
      'dropout',
      'global_avg_pool_bwd',
      'activation_bwd',
      'bn_bwd_reduce',
    ])
  })

  it('sums the contributions of several readers straight into the gradient', () => {
    const graph = new Graph('shared')
    const weights = graph.parameter('w', [2, 2], anyParam([2, 2]))
    const x = graph.input('x', [1, 2], 'f32')
    let y = x
    for (let i = 0; i < 3; i++) y = graph.node('linear', { src: y, weights }, {}, { name: `layer${i}` })['dst']!
    autodiff(graph, new Map([[y, graph.input('seed', [1, 2], 'f32')]]))
    verify(graph)
    expect(
      backward(graph)
        .filter((n) => n.op === 'add')
        .map((n) => n.outputs[0]!.role),
    ).toEqual(['activation', 'gradient'])
    expect(backward(graph).filter((n) => n.op === 'cast')).toEqual([])
    // y = w^3 x for the diagonal w = diag(2, 3): dy0/dw00 = 3 * 4 * x0.
    const values = new Map([
      ['w', Float64Array.of(2, 0, 0, 3)],
      ['x', Float64Array.of(5, 7)],
      ['seed', Float64Array.of(1, 0)],
    ])
    expect(interpret(graph, { values }).get('grad:w')![0]).toBe(3 * 4 * 5)
  })

  it('refuses what is no loss, and what has no rule', () => {
    const graph = new Graph('none')
    const logits = graph.parameter('logits', [1, 2], anyParam([1, 2]))
    const relu = graph.node('activation', { src: logits }, { act: actCode('relu') }, { name: 'relu' })['dst']!
    expect(() => autodiff(graph, relu)).toThrow(expect.objectContaining({ code: 'EFF_INTERNAL' }))
    const probs = graph.node('softmax', { logits }, {}, { name: 'softmax' })['probs']!
    expect(() => autodiff(graph, new Map([[probs, graph.input('seed', [1, 2], 'f32')]]))).toThrow('no gradient rule')
  })
})

describe('recompute', () => {
  const program = (policy: 'none' | 'cheap', frozen?: (name: string) => boolean, imageSize = 64) =>
    trainProgram(getModelConfig('efficientnet_b0'), {
      batchSize: 2,
      imageSize,
      dtype: 'f32',
      optimizer: { name: 'sgd' },
      labelSmoothing: 0.1,
      dropRate: 0.2,
      dropPathRate: 0.2,
      gradNorm: false,
      ema: false,
      target: { device: 'cpu' },
      recompute: policy,
      frozen,
    })

  it('repeats BN + activation without residual, before its first use in the backward part', () => {
    const graph = program('cheap')
    verify(graph)
    const again = graph.nodes.filter((n) => n.recomputed)
    expect(new Set(again.map((n) => n.op))).toEqual(new Set(['bn_act']))
    // The 7 block outputs without residual; what a depthwise convolution reads was never stored.
    expect(again).toHaveLength(7)
    for (const node of again) {
      expect(node.backward).toBe(true)
      expect(graph.nodes[node.id + 1]!.inputs).toContain(node.outputs[0])
    }
    // The gated output of the 16 blocks comes from the pass over the same tensors that the gate's gradient needs.
    const passing = graph.nodes.filter((n) => n.op === 'bn_act_bwd_sums')
    expect(passing).toHaveLength(16)
    for (const node of passing) {
      const reader = graph.nodes[node.id + 1]!
      expect([reader.op, reader.inputs[0]]).toEqual(['conv2d_bwd_weights', node.outputs[2]])
    }
    const saved = new Set(graph.nodes.filter((n) => n.op === 'bn_act' && !n.recomputed && !n.inputs[6]).map((n) => n.outputs[0]))
    for (const node of backward(graph)) for (const t of node.inputs) expect(saved.has(t)).toBe(false)
  })

  it('gives the same bits', () => {
    const before = program('none', undefined, 32)
    expectEqual(before, program('cheap', undefined, 32), networkValues(before, 2), 0)
  })

  it('repeats nothing for a backward part that reads nothing wide', () => {
    const graph = program('cheap', (name) => !name.startsWith('classifier'))
    expect(graph.nodes.filter((n) => n.recomputed)).toEqual([])
  })

  it('does nothing when asked for nothing', () => {
    const graph = program('none')
    expect(recompute(graph, 'none').nodes.map((n) => n.name)).toEqual(graph.nodes.map((n) => n.name))
  })
})

describe('eliminateDead', () => {
  it('keeps outputs, gradients, updates and what is named, with all inputs and parameters', () => {
    const graph = new Graph('dead')
    const x = graph.input('x', [2], 'f32')
    graph.parameter('unused', [1], anyParam([1]))
    const node = (name: string, src: Tensor, role: 'activation' | 'output' = 'activation') =>
      graph.node('activation', { src }, { act: actCode('relu') }, { name, role })['dst']!
    node('out', node('middle', x), 'output')
    node('dead', node('dying', x))
    node('named', x)
    const names = (g: Graph) => g.nodes.map((n) => n.name)
    expect(names(eliminateDead(graph, ['named']))).toEqual(['middle', 'out', 'named'])
    expect(names(eliminateDead(graph))).toEqual(['middle', 'out'])
    expect(eliminateDead(graph).tensors.map((t) => t.name)).toEqual(['x', 'unused', 'middle', 'out'])
  })
})
