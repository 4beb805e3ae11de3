import { describe, expect, it } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import type { OpName } from '../../ts/graph/op_table.js'
import type { Node } from '../../ts/graph/types.js'
import { buildEfficientNet, getModelConfig, networkOf } from '../../ts/nn/index.js'
import { eliminateDead, foldBn, markOutputs } from '../../ts/passes/index.js'
import { networkValues } from '../graph/values.js'
import { expectEqual, randomGraph, valuesFor } from './random_graph.js'

const TARGET = { device: 'cpu' } as const

function evaluation(name: string, size: number): Graph {
  const graph = new Graph(name)
  const net = buildEfficientNet(graph, getModelConfig(name), { batch: 1, height: size, width: size, mode: 'eval', dtype: 'f32' })
  return markOutputs(graph, [net.features.name, net.logits.name])
}

describe('folded inference equals unfolded inference', () => {
  it.each(['efficientnet_b0', 'tf_efficientnet_b0', 'efficientnetv2_b0', 'efficientnet_lite0'])('%s', (name) => {
    const before = evaluation(name, 40)
    expectEqual(before, foldBn(before, TARGET), networkValues(before, 3), 1e-11)
  })

  it.each(['efficientnet_b0', 'efficientnetv2_b0'])('%s with every expansion joined to its depthwise convolution', (name) => {
    const before = evaluation(name, 40)
    const joined = foldBn(before, TARGET, 0)
    const { blocks } = networkOf(getModelConfig(name))
    const inverted = blocks.filter(({ layers: [first, second] }) => {
      return first?.type === 'conv' && !first.depthwise && second?.type === 'conv' && second.depthwise
    })
    expect(joined.nodes.filter((n) => n.op === 'expand_depthwise_bias_act')).toHaveLength(inverted.length)
    expectEqual(before, joined, networkValues(before, 3), 1e-11)
  })

  it('on random graphs', () => {
    for (let seed = 1; seed <= 150; seed++) {
      const before = randomGraph(seed, 'eval')
      expectEqual(before, eliminateDead(foldBn(before, TARGET)), valuesFor(before))
      expectEqual(before, eliminateDead(foldBn(before, TARGET, 0)), valuesFor(before))
    }
  })
})

describe('joined expansions', () => {
  it('are those whose tensor is larger than a cache: of efficientnet_b0 at 224 px the first three', () => {
    const joined = foldBn(evaluation('efficientnet_b0', 224), TARGET).nodes.filter((n) => n.op === 'expand_depthwise_bias_act')
    expect(joined.map((n) => n.name)).toEqual(['blocks.1.0.conv_dw', 'blocks.1.1.conv_dw', 'blocks.2.0.conv_dw'])
  })
})

describe('what is left', () => {
  const kinds = (nodes: readonly Node[]): Partial<Record<OpName, number>> => {
    const counts: Partial<Record<OpName, number>> = {}
    for (const node of nodes) counts[node.op] = (counts[node.op] ?? 0) + 1
    return counts
  }

  it.each(['efficientnet_b0', 'efficientnet_b7', 'efficientnetv2_s', 'efficientnetv2_b0', 'efficientnet_lite4'])('%s', (name) => {
    const folded = foldBn(evaluation(name, 64), TARGET)
    const net = networkOf(getModelConfig(name))
    const layers = [net.stem, ...net.blocks.flatMap((b) => b.layers), net.head]
    const depthwise = layers.filter((l) => l.type === 'conv' && l.depthwise).length
    const dense = layers.filter((l) => l.type === 'conv' && !l.depthwise).length
    const gates = layers.filter((l) => l.type === 'se').length
    expect(kinds(folded.nodes)).toEqual({
      fold_bn: dense + depthwise,
      input_normalize: 1,
      conv2d_bias_act: dense,
      ...(depthwise > 0 && { depthwise_conv2d_bias_act: depthwise }),
      ...(gates > 0 && { se_gate: gates }),
      global_avg_pool: 1,
      linear: 1,
    })
    const residuals = folded.nodes.filter((n) => n.op === 'conv2d_bias_act' && n.inputs[4])
    expect(residuals).toHaveLength(net.blocks.filter((b) => b.residual).length)
    expect(folded.nodes.filter((n) => n.op === 'conv2d_bias_act' && n.inputs[3])).toHaveLength(gates)
    expect(folded.nodes.filter((n) => n.op === 'depthwise_conv2d_bias_act' && n.outputs[1])).toHaveLength(gates)
  })

  it('a block of efficientnet_b0 is four ops', () => {
    const folded = foldBn(evaluation('efficientnet_b0', 64), TARGET)
    const block = folded.nodes.filter((n) => !n.prepare && n.name.startsWith('blocks.1.1.'))
    expect(block.map((n) => [n.op, n.name])).toEqual([
      ['conv2d_bias_act', 'blocks.1.1.conv_pw'],
      ['depthwise_conv2d_bias_act', 'blocks.1.1.conv_dw'],
      ['se_gate', 'blocks.1.1.se.gate'],
      ['conv2d_bias_act', 'blocks.1.1.conv_pwl'],
    ])
  })

  it('folded weights are made by the prepare program', () => {
    const folded = foldBn(evaluation('efficientnet_b0', 64), TARGET)
    const prepared = folded.nodes.filter((n) => n.prepare)
    expect(new Set(prepared.map((n) => n.op))).toEqual(new Set(['fold_bn']))
    expect(prepared.flatMap((n) => n.outputs).every((t) => t?.role === 'prepared')).toBe(true)
    expect(folded.nodes.indexOf(prepared.at(-1)!)).toBe(prepared.length - 1)
  })
})
