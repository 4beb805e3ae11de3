import { describe, expect, it } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import type { OpName } from '../../ts/graph/op_table.js'
import { actCode } from '../../ts/graph/types.js'
import { getModelConfig, type ModelConfig } from '../../ts/nn/index.js'
import { eliminateDead, fuseTraining, gateInConvolution, recompute } from '../../ts/passes/index.js'
import { networkValues } from '../graph/values.js'
import { differentiate, expectEqual, randomGraph, valuesFor } from './random_graph.js'
import { type NetOptions, shortened, training as trainingFor } from './training_graph.js'

const TARGET = { device: 'cpu' } as const

const training = (config: ModelConfig, fuse: boolean, options: NetOptions): Graph =>
  trainingFor(config, fuse ? TARGET : null, options)

const count = (graph: Graph, op: OpName): number => graph.nodes.filter((n) => n.op === op).length

describe('fused training equals unfused training', () => {
  it.each([
    ['efficientnet_b0', 4],
    ['efficientnetv2_b0', 5],
    ['efficientnet_lite0', 3],
    ['tf_efficientnet_b0', 3],
  ])('%s: loss, gradients, running statistics', (name, stages) => {
    const config = shortened(name, stages)
    const before = training(config, false, { size: 40 })
    expectEqual(before, training(config, true, { size: 40 }), networkValues(before, 3))
  })

  it('with frozen layers', () => {
    // Frozen BN in the middle, where gradients still have to pass, and frozen weights of squeeze-and-excitation.
    const frozen = (name: string) => /blocks\.1\..*bn|blocks\.2\.0\.se/.test(name)
    const config = shortened('efficientnet_b0', 3)
    const before = training(config, false, { size: 40, frozen })
    const after = training(config, true, { size: 40, frozen })
    expectEqual(before, after, networkValues(before, 3))
    expect(after.nodes.filter((n) => n.op === 'bn_act_bwd_apply' && n.attrs['batch_stats'] === 0)).not.toHaveLength(0)
    expect(after.tensors.filter((t) => t.role === 'gradient' && frozen(t.of!.name))).toEqual([])
  })

  it('efficientnet_b0 as it is', () => {
    const config = getModelConfig('efficientnet_b0')
    const before = training(config, false, { size: 48, batch: 2 })
    expectEqual(before, training(config, true, { size: 48, batch: 2 }), networkValues(before, 3))
  })

  it('on random graphs', () => {
    for (let seed = 1; seed <= 150; seed++) {
      const before = differentiate(randomGraph(seed, 'train'))
      const after = differentiate(fuseTraining(randomGraph(seed, 'train'), TARGET))
      expectEqual(before, after, valuesFor(before))
      expectEqual(after, recompute(eliminateDead(after), 'cheap'), valuesFor(before), 0)
    }
  })
})

describe('what is left after fusion', () => {
  const WIDE: OpName[] = [
    'bn_apply',
    'activation',
    'channel_scale',
    'drop_path',
    'global_avg_pool',
    'bn_bwd_reduce',
    'activation_bwd',
  ]

  it.each([
    'efficientnet_b0',
    'efficientnet_b4',
    'efficientnetv2_s',
    'efficientnetv2_b0',
    'efficientnet_lite0',
    'efficientnet_widese_b0',
  ])('%s', (name) => {
    const config = getModelConfig(name)
    const plain = training(config, false, { size: 64 })
    const fused = training(config, true, { size: 64 })
    for (const op of WIDE) expect([op, count(fused, op)]).toEqual([op, 0])
    // Of the head's pooling, on the narrowest tensor.
    expect(fused.nodes.filter((n) => n.op === 'global_avg_pool_bwd').map((n) => n.name)).toEqual(['global_pool.bwd_pool'])
    expect(count(fused, 'channel_scale_bwd_gate')).toBe(0)
    expect(count(fused, 'se_gate')).toBe(count(fused, 'se_gate_bwd'))
    expect(count(fused, 'se_gate')).toBe(count(plain, 'channel_scale') / 2)
    // In front of a depthwise convolution only the linear part of a BN's gradient is left.
    const inConvolutions = fused.nodes.filter((n) => n.op === 'depthwise_conv2d_stats' && n.inputs[2]).length
    const activations = new Set(plain.nodes.filter((n) => n.op === 'activation').map((n) => n.outputs[0]))
    const behindActivation = plain.nodes.filter((n) => n.op === 'depthwise_conv2d' && activations.has(n.inputs[0]!))
    expect(inConvolutions).toBe(behindActivation.length)
    expect(count(fused, 'bn_bwd_apply')).toBe(inConvolutions)
    expect(count(fused, 'bn_act_bwd_apply')).toBe(count(plain, 'bn_apply') - inConvolutions)
    // What remains of sums joins the two paths of a residual in the backward part.
    const residuals = fused.nodes.filter((n) => n.op === 'bn_act' && n.inputs[6]).length
    expect([count(fused, 'add'), residuals]).toEqual([residuals, plain.nodes.filter((n) => n.op === 'add' && !n.backward).length])
  })

  it('the activation before a gate is never stored', () => {
    const fused = training(shortened('efficientnet_b0', 2), true, { size: 32 })
    const gated = fused.nodes.filter((n) => n.op === 'bn_act' && n.inputs[5])
    expect(gated.length).toBeGreaterThan(0)
    for (const node of gated) {
      const twin = fused.nodes.find((n) => n.op === 'bn_act_pool' && n.inputs[0] === node.inputs[0])
      expect(twin, node.name).toBeDefined()
      const backward = fused.nodes.find((n) => n.op === 'bn_act_bwd_apply' && n.inputs[1] === node.inputs[0])!
      expect([backward.inputs[8], Boolean(backward.inputs[9])]).toEqual([node.inputs[5], true])
    }
  })
})

describe('the gate in the convolution', () => {
  const config = shortened('efficientnet_b0', 3)
  const before = training(config, false, { size: 40 })
  const fused = training(config, true, { size: 40 })
  const gatedTensors = (graph: Graph) => graph.nodes.filter((n) => n.op === 'bn_act' && !n.backward && n.inputs[5])

  it('no forward tensor is gated in a pass of its own, and nothing changes', () => {
    const after = gateInConvolution(recompute(fused, 'cheap'))
    expect(gatedTensors(fused).length).toBeGreaterThan(0)
    expect(gatedTensors(after)).toEqual([])
    const gating = after.nodes.filter((n) => n.op === 'conv2d_stats' && n.inputs[2])
    expect(gating.length).toBe(gatedTensors(fused).length)
    const stored = new Set(after.nodes.filter((n) => n.op === 'bn_act_pool').map((n) => n.outputs[1]))
    for (const node of gating) expect(stored.has(node.inputs[0]!), node.name).toBe(true)
    expectEqual(before, after, networkValues(before, 3))
  })

  it('a gated tensor that the backward part reads is made as before', () => {
    const saved = recompute(fused, 'none')
    expect(gateInConvolution(saved)).toBe(saved)
  })
})

describe('patterns keep what others read', () => {
  /** conv -> bn -> act -> pool -> gate -> scale, with an extra reader of the tensor of this name. */
  function block(tap: string | null): Graph {
    const graph = new Graph('block')
    const c = [4]
    const info = { kind: 'conv', layout: 'vector', torchShape: c } as const
    const p = (name: string, shape: number[]) => graph.parameter(name, shape, info)
    const src = graph.input('src', [2, 3, 3, 4], 'f32')
    const updates = [graph.buffer('rm', c, info), graph.buffer('rv', c, { ...info, kind: 'bn_var' })]
    const { mean, inv_std } = graph.node('bn_stats', { src }, { eps: 0.1, momentum: 0.1 }, { name: 'stats', updates })
    const norm = { src, mean: mean!, inv_std: inv_std!, scale: p('scale', c), shift: p('shift', c) }
    const bn = graph.node('bn_apply', norm, { batch_stats: 1 }, { name: 'bn' })['dst']!
    const act = graph.node('activation', { src: bn }, { act: actCode('silu') }, { name: 'act' })['dst']!
    const pooled = graph.node('global_avg_pool', { src: act }, {}, { name: 'pool' })['dst']!
    const hidden = graph.node('linear', { src: pooled, weights: p('w0', [2, 4]), bias: p('b0', [2]) }, {}, { name: 'reduce' })[
      'dst'
    ]!
    const inner = graph.node('activation', { src: hidden }, { act: actCode('silu') }, { name: 'inner' })['dst']!
    const logits = graph.node('linear', { src: inner, weights: p('w1', [4, 2]), bias: p('b1', [4]) }, {}, { name: 'expand' })[
      'dst'
    ]!
    const gate = graph.node('activation', { src: logits }, { act: actCode('sigmoid') }, { name: 'gate' })['dst']!
    graph.node('channel_scale', { src: act, gate }, {}, { name: 'out', role: 'output' })
    if (tap) graph.node('activation', { src: graph.find(tap) }, { act: actCode('relu') }, { name: 'tap', role: 'output' })
    return graph
  }

  const ops = (graph: Graph) => graph.nodes.map((n) => n.op)

  it('a whole block becomes four ops', () => {
    expect(ops(fuseTraining(block(null), TARGET))).toEqual(['bn_stats', 'bn_act_pool', 'se_gate', 'bn_act'])
  })

  it.each([
    ['bn', ['bn_act', 'activation', 'global_avg_pool', 'se_gate', 'channel_scale']],
    ['act', ['bn_act', 'global_avg_pool', 'se_gate', 'channel_scale']],
    ['reduce', ['bn_act_pool', 'linear', 'activation', 'linear', 'activation', 'bn_act']],
    ['expand', ['bn_act_pool', 'linear', 'activation', 'linear', 'activation', 'bn_act']],
    ['pool', ['bn_act_pool', 'se_gate', 'bn_act']],
    ['gate', ['bn_act_pool', 'se_gate', 'bn_act']],
  ])('a second reader of %s', (tap, expected) => {
    const fused = fuseTraining(block(tap), TARGET)
    expect(ops(fused)).toEqual(['bn_stats', ...expected, 'activation'])
    const before = differentiate(block(tap))
    expectEqual(before, differentiate(fused), valuesFor(before))
  })
})
