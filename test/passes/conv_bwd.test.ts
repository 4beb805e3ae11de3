import { describe, expect, it } from 'vitest'
import type { Graph } from '../../ts/graph/graph.js'
import { actCode, type Node } from '../../ts/graph/types.js'
import { verify } from '../../ts/graph/verify.js'
import { getModelConfig } from '../../ts/nn/index.js'
import { applyPatterns } from '../../ts/passes/fuse.js'
import { convBwd } from '../../ts/passes/fuse_patterns/conv_bwd.js'
import { eliminateDead, fuseTraining } from '../../ts/passes/index.js'
import { Rewriter } from '../../ts/passes/rewrite.js'
import { trainProgram } from '../../ts/runtime/programs.js'
import { convBlock, differentiate } from './conv_block.js'
import { expectEqual, valuesFor } from './random_graph.js'

const TARGET = { device: 'cpu' } as const

interface Options {
  act?: 'identity' | 'silu'
  channels?: number
  frozen?: boolean
  fuse: boolean
}

/** A 1x1 convolution of three channels. */
function block({ act = 'identity', channels = 5, frozen = false, fuse }: Options): Graph {
  const weights = [channels, 1, 1, 3]
  const block = convBlock({ op: 'conv2d', src: [2, 7, 6, 3], weights, act, frozen: frozen ? ['weights'] : [] })
  let graph = differentiate(fuseTraining(block, TARGET), 'out')
  if (fuse) graph = applyPatterns(graph, [convBwd(0)], TARGET)
  verify(graph)
  return eliminateDead(graph, ['out'])
}

/** The node, and behind conv2d_bwd_data a reader of what it makes. */
function readEarly(rewriter: Rewriter, node: Node): void {
  rewriter.copy(node)
  if (node.op !== 'conv2d_bwd_data') return
  const src = rewriter.to(node.outputs[0]!)
  rewriter.graph.node('activation', { src }, { act: actCode('relu') }, { name: 'early', role: 'output' })
}

const ops = (graph: Graph): string[] => graph.nodes.map((n) => n.op).filter((op) => op.startsWith('conv2d_bwd'))

describe('both gradients of a 1x1 convolution behind normalisation', () => {
  it.each(['identity', 'silu'] as const)('have the same values, %s', (act) => {
    const before = block({ act, fuse: false })
    const after = block({ act, fuse: true })
    expect(ops(before)).toEqual(['conv2d_bwd_weights', 'conv2d_bwd_data'])
    expect(ops(after)).toEqual(['conv2d_bwd'])
    expectEqual(before, after, valuesFor(before))
  })

  it('are two ops where somebody reads one result before the other is made', () => {
    const graph = block({ fuse: false })
    const rewriter = Rewriter.of(graph)
    const weights = graph.nodes.find((n) => n.op === 'conv2d_bwd_weights')!
    for (const node of graph.nodes) if (node !== weights) readEarly(rewriter, node)
    rewriter.copy(weights)
    const late = rewriter.graph
    verify(late)
    expect(ops(applyPatterns(late, [convBwd(0)], TARGET))).toEqual(['conv2d_bwd_data', 'conv2d_bwd_weights'])
  })

  it('are two ops where one is not wanted, or the source is the wider one', () => {
    expect(ops(block({ frozen: true, fuse: true }))).toEqual(['conv2d_bwd_data'])
    expect(ops(block({ channels: 2, fuse: true }))).toEqual(['conv2d_bwd_weights', 'conv2d_bwd_data'])
  })
})

describe('of EfficientNet-B0', () => {
  const training = (batchSize: number) =>
    trainProgram(getModelConfig('efficientnet_b0'), {
      batchSize,
      imageSize: 224,
      dtype: 'f32',
      optimizer: { name: 'sgd' },
      labelSmoothing: 0,
      dropRate: 0.2,
      dropPathRate: 0.2,
      gradNorm: false,
      ema: false,
      target: TARGET,
    })

  it('three are wide enough at batch 32, none at batch 6', () => {
    const fused = training(32).nodes.filter((n) => n.op === 'conv2d_bwd')
    // The next one, blocks.3.0, has 24 MB.
    const names = ['blocks.2.0', 'blocks.1.1', 'blocks.1.0'].map((block) => `${block}.conv_pw.weight`)
    expect(fused.map((n) => n.inputs[1]!.name)).toEqual(names)
    expect(ops(training(6))).not.toContain('conv2d_bwd')
  })
})
