import { describe, expect, it } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import { actCode, type Node, type Shape, type Tensor } from '../../ts/graph/types.js'
import { verify } from '../../ts/graph/verify.js'
import { getModelConfig } from '../../ts/nn/index.js'
import { applyPatterns } from '../../ts/passes/fuse.js'
import { convBwd } from '../../ts/passes/fuse_patterns/conv_bwd.js'
import { autodiff, eliminateDead, fuseTraining } from '../../ts/passes/index.js'
import { Rewriter } from '../../ts/passes/rewrite.js'
import { trainProgram } from '../../ts/runtime/programs.js'
import { anyParam } from '../graph/values.js'
import { expectEqual, valuesFor } from './random_graph.js'

const TARGET = { device: 'cpu' } as const

interface Options {
  act?: 'identity' | 'silu'
  channels?: number
  frozen?: boolean
  fuse: boolean
}

/** A 1x1 convolution with batch normalisation and activation, differentiated from a seed. */
function block({ act = 'identity', channels = 5, frozen = false, fuse }: Options): Graph {
  let graph = new Graph('block')
  const param = (name: string, shape: Shape, trainable = true): Tensor => graph.parameter(name, shape, anyParam(shape), trainable)
  const c = [channels]
  const src = param('src', [2, 7, 6, 3])
  const weights = param('weights', [channels, 1, 1, 3], !frozen)
  const updates = (['bn_mean', 'bn_var'] as const).map((kind) => graph.buffer(kind, c, { ...anyParam(c), kind }))
  const window = { stride: 1, pad_t: 0, pad_l: 0, pad_b: 0, pad_r: 0 }
  const { dst } = graph.node('conv2d', { src, weights }, window, { name: 'conv' })
  const { mean, inv_std } = graph.node('bn_stats', { src: dst! }, { eps: 1e-3, momentum: 0.1 }, { name: 'stats', updates })
  const norm = { src: dst!, mean: mean!, inv_std: inv_std!, scale: param('scale', c), shift: param('shift', c) }
  const bn = graph.node('bn_apply', norm, { batch_stats: 1 }, { name: 'bn' })['dst']!
  graph.node('activation', { src: bn }, { act: actCode(act) }, { name: 'out' })
  const seed = graph.input('seed', dst!.shape, 'f32')
  graph = fuseTraining(graph, TARGET)
  autodiff(graph, new Map([[graph.find('out'), graph.find(seed.name)]]))
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
      clip: false,
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
