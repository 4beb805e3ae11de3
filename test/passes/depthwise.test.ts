import { describe, expect, it } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import type { Shape, Tensor } from '../../ts/graph/types.js'
import { verify } from '../../ts/graph/verify.js'
import { autodiff, eliminateDead, fuseTraining } from '../../ts/passes/index.js'
import { anyParam } from '../graph/values.js'
import { expectEqual, valuesFor } from './random_graph.js'

const TARGET = { device: 'cpu' } as const

interface Options {
  kernel?: number
  stride?: number
  channels?: number
  width?: number
  frozen?: 'weights' | 'src'
  fuse: boolean
}

/** A depthwise convolution with batch normalisation, differentiated from a seed. */
function block({ kernel = 3, stride = 1, channels = 16, width = 6, frozen, fuse }: Options): Graph {
  let graph = new Graph('block')
  const param = (name: string, shape: Shape, trainable = true): Tensor => graph.parameter(name, shape, anyParam(shape), trainable)
  const src = param('src', [2, 7, width, channels], frozen !== 'src')
  const weights = param('weights', [kernel, kernel, channels], frozen !== 'weights')
  const c = [channels]
  const updates = (['bn_mean', 'bn_var'] as const).map((kind) => graph.buffer(kind, c, { ...anyParam(c), kind }))
  const pad = (kernel - 1) / 2
  const window = { stride, pad_t: pad, pad_l: pad, pad_b: pad, pad_r: pad - (stride - 1) }
  const { dst } = graph.node('depthwise_conv2d', { src, weights }, window, { name: 'conv' })
  const { mean, inv_std } = graph.node('bn_stats', { src: dst! }, { eps: 1e-3, momentum: 0.1 }, { name: 'stats', updates })
  const norm = { src: dst!, mean: mean!, inv_std: inv_std!, scale: param('scale', c), shift: param('shift', c) }
  graph.node('bn_apply', norm, { batch_stats: 1 }, { name: 'bn' })
  const seed = graph.input('seed', dst!.shape, 'f32')
  if (fuse) graph = fuseTraining(graph, TARGET)
  autodiff(graph, new Map([[graph.find('bn'), graph.find(seed.name)]]))
  verify(graph)
  return eliminateDead(graph, ['bn'])
}

const ops = (graph: Graph): string[] => graph.nodes.map((n) => n.op).filter((op) => op.startsWith('depthwise'))

describe('depthwise convolution with the statistics of its result', () => {
  it.each([
    [3, 1],
    [3, 2],
    [5, 1],
    [5, 2],
  ])('kernel %i, stride %i: the same values and gradients', (kernel, stride) => {
    for (const width of [6, 80]) {
      const before = block({ kernel, stride, width, fuse: false })
      const after = block({ kernel, stride, width, fuse: true })
      const backward = width === 80 ? ['depthwise_conv2d_bwd'] : ['depthwise_conv2d_bwd_weights', 'depthwise_conv2d_bwd_data']
      expect(ops(after)).toEqual(['depthwise_conv2d_stats', ...backward])
      expectEqual(before, after, valuesFor(before))
    }
  })

  it.each([
    ['weights', 'depthwise_conv2d_bwd_data'],
    ['src', 'depthwise_conv2d_bwd_weights'],
  ] as const)('frozen %s: %s alone', (frozen, op) => {
    const before = block({ frozen, width: 80, fuse: false })
    const after = block({ frozen, width: 80, fuse: true })
    expect(ops(after)).toEqual(['depthwise_conv2d_stats', op])
    expectEqual(before, after, valuesFor(before))
  })

  it('stays in two parts where there is no kernel for it', () => {
    for (const options of [{ kernel: 7 }, { channels: 15 }]) {
      const expected = ['depthwise_conv2d', 'depthwise_conv2d_bwd_weights', 'depthwise_conv2d_bwd_data']
      expect(ops(block({ ...options, fuse: true }))).toEqual(expected)
    }
  })
})
