import { describe, expect, it } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import { actCode, type Tensor } from '../../ts/graph/types.js'
import { verify } from '../../ts/graph/verify.js'
import { applyPatterns } from '../../ts/passes/fuse.js'
import { blockEnd } from '../../ts/passes/fuse_patterns/block_end.js'
import { expectEqual, valuesFor } from './random_graph.js'

const GPU = { device: 'cuda' } as const
const WINDOW = { stride: 1, pad_t: 0, pad_l: 0, pad_b: 0, pad_r: 0 }
const NONE = { act: 0, drop_rate: 0, rng_stream: 0, src_act: 0, end_drop_rate: 0, end_rng_stream: 0 }

interface Options {
  /** Of the activation that the BN in front of the source has behind it. */
  act?: 'identity' | 'silu'
  added?: boolean
  summed?: boolean
  gated?: boolean
  /** Somebody else reads the convolution's own gradient. */
  read?: boolean
  /** The other gradient is there only behind the convolution. */
  late?: boolean
}

/** The backward part of a 1x1 convolution of a block's result, and what follows it: the residual's gradient, the sums of a BN. */
function backward({ act = 'identity', added = true, summed = true, gated, read, late }: Options): Graph {
  const graph = new Graph('end')
  const image = (name: string, c: number): Tensor => graph.input(name, [3, 4, 5, c], 'f32')
  const vector = (name: string, c: number): Tensor => graph.input(name, [c], 'f32')
  const norm = (prefix: string, c: number) => ({
    mean: vector(`${prefix}mean`, c),
    inv_std: vector(`${prefix}inv_std`, c),
    scale: vector(`${prefix}scale`, c),
    shift: vector(`${prefix}shift`, c),
  })
  const make = (name: string): Tensor =>
    graph.node('activation', { src: image(`${name}_src`, 4) }, { act: actCode('relu') }, { name })['dst']!
  const early = late ? null : make('residual')
  const operands = { src: image('src', 4), weights: graph.input('weights', [6, 1, 1, 4], 'f32'), diff_dst: image('diff', 6) }
  const behind = {
    dst: image('dst', 6),
    ...norm('', 6),
    diff_scale: vector('diff_scale', 6),
    diff_shift: vector('diff_shift', 6),
  }
  const conv = graph.node('conv2d_bwd', { ...operands, ...behind }, { ...WINDOW, ...NONE, batch_stats: 1 }, { name: 'conv' })
  let diff = conv['diff_src']!
  graph.node('cast', { src: conv['diff_weights']! }, {}, { name: 'weights_diff', dtype: 'f32', role: 'output' })
  if (read) graph.node('activation', { src: diff }, { act: actCode('relu') }, { name: 'read', role: 'output' })
  if (added) diff = graph.node('add', { src0: early ?? make('residual'), src1: diff }, {}, { name: 'sum' })['dst']!
  if (summed) {
    const gate = gated ? { gate: graph.input('gate', [3, 4], 'f32') } : {}
    const attrs = { act: actCode(act), drop_rate: 0.4, rng_stream: 3 }
    const reduce = { diff_dst: diff, src: image('end', 4), ...norm('end_', 4), ...gate }
    graph.node('bn_act_bwd_reduce', reduce, attrs, { name: 'reduce', role: 'output' })
  }
  graph.node('activation', { src: diff }, { act: actCode('silu') }, { name: 'out', role: 'output' })
  verify(graph)
  return graph
}

function fused(options: Options): string[] {
  const before = backward(options)
  const after = applyPatterns(before, [blockEnd], GPU)
  expectEqual(before, after, valuesFor(before))
  return after.nodes.map((n) => n.op).filter((op) => op !== 'activation' && op !== 'cast')
}

describe('the gradient of what ends a block', () => {
  it.each([
    [{}],
    [{ summed: false }],
    [{ added: false }],
    [{ added: false, read: true }], // the sums are of what the convolution makes, whoever else reads it
  ])('is finished by the convolution, %j', (options) => {
    expect(fused(options)).toEqual(['conv2d_bwd'])
  })

  it.each([
    [{ read: true }, ['conv2d_bwd', 'add', 'bn_act_bwd_reduce']],
    [{ late: true }, ['conv2d_bwd', 'add', 'bn_act_bwd_reduce']],
    [{ act: 'silu' } as const, ['conv2d_bwd', 'bn_act_bwd_reduce']],
    [{ gated: true }, ['conv2d_bwd', 'bn_act_bwd_reduce']],
    [{ act: 'silu', added: false } as const, ['conv2d_bwd', 'bn_act_bwd_reduce']],
  ])('is not where it cannot be, %j', (options, ops) => {
    expect(fused(options)).toEqual(ops)
  })

  it('is left to other ops on CPUs', () => {
    const graph = backward({})
    expect(applyPatterns(graph, [blockEnd], { device: 'cpu' }).nodes).toHaveLength(graph.nodes.length)
  })
})
