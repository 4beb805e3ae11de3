import { describe, expect, it } from 'vitest'
import type { Graph } from '../../ts/graph/graph.js'
import type { OpName } from '../../ts/graph/op_table.js'
import { verify } from '../../ts/graph/verify.js'
import { getModelConfig, type ModelConfig } from '../../ts/nn/index.js'
import { eliminateDead, fuseBackward } from '../../ts/passes/index.js'
import { networkValues } from '../graph/values.js'
import { expectEqual } from './random_graph.js'
import { differentiated, type NetOptions, shortened, training as trainingFor } from './training_graph.js'

const GPU = { device: 'cuda' } as const

function training(config: ModelConfig, fuse: boolean, options: NetOptions): Graph {
  if (!fuse) return trainingFor(config, null, options)
  const done = eliminateDead(fuseBackward(differentiated(config, GPU, options), GPU))
  verify(done)
  return done
}

const count = (graph: Graph, op: OpName, has = 0): number => graph.nodes.filter((n) => n.op === op && n.inputs[has]).length

describe('training as fused for a GPU', () => {
  it.each([
    ['efficientnet_b0', 4],
    ['efficientnetv2_b0', 5],
    ['efficientnet_lite0', 3],
  ])('%s: the same loss, gradients and running statistics as unfused', (name, stages) => {
    const config = shortened(name, stages)
    const before = training(config, false, { size: 40 })
    expectEqual(before, training(config, true, { size: 40 }), networkValues(before, 3))
  })

  it('with frozen layers', () => {
    const frozen = (name: string) => /blocks\.1\..*bn|blocks\.2\.0\.se|blocks\.0\..*conv_pw/.test(name)
    const config = shortened('efficientnet_b0', 3)
    const before = training(config, false, { size: 40, frozen })
    expectEqual(before, training(config, true, { size: 40, frozen }), networkValues(before, 3))
  })

  it.each([
    ['efficientnet_b0', 16],
    ['efficientnet_lite0', 16],
    ['efficientnetv2_s', 30],
  ])('%s: no wide tensor between two convolutions is stored, nor passed over alone', (name, depthwise) => {
    const fused = training(getModelConfig(name), true, { size: 64 })
    // Forward: only block outputs and what nobody but a 3x3 convolution reads.
    const stored = fused.nodes.filter((n) => n.op === 'bn_act' && !n.inputs[6] && n.attrs['act'] !== 0)
    expect(stored.every((n) => fused.nodes.some((r) => r.inputs.includes(n.outputs[0]!) && r.op !== 'conv2d_stats'))).toBe(true)
    expect(stored.length).toBeLessThanOrEqual(name === 'efficientnetv2_s' ? 4 : 1)
    // Backward: every depthwise convolution makes the gradient in front of it itself, and gates have their sums from a convolution.
    expect([count(fused, 'depthwise_conv2d_bwd', 7), count(fused, 'bn_act_bwd_sums')]).toEqual([depthwise, 0])
    // At a block's end only what no 1x1 convolution follows: the pooled values, and in V2-S the 3x3 convolutions of 3 stages.
    const dense = name === 'efficientnetv2_s'
    expect([count(fused, 'add'), count(fused, 'bn_act_bwd_reduce')]).toEqual(dense ? [8, 11] : [0, 1])
    expect(fused.nodes.filter((n) => n.op === 'conv2d_bwd' && n.inputs[11])).toHaveLength(
      fused.nodes.filter((n) => n.op === 'conv2d_stats' && n.inputs[3]).length,
    )
  })
})
