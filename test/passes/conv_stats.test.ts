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
  fuse: boolean
}

/** A dense convolution with batch normalisation, differentiated from a seed. */
function block({ kernel = 1, stride = 1, fuse }: Options): Graph {
  let graph = new Graph('block')
  const param = (name: string, shape: Shape): Tensor => graph.parameter(name, shape, anyParam(shape), true)
  const c = [5]
  const src = param('src', [2, 7, 6, 3])
  const weights = param('weights', [5, kernel, kernel, 3])
  const updates = (['bn_mean', 'bn_var'] as const).map((kind) => graph.buffer(kind, c, { ...anyParam(c), kind }))
  const pad = (kernel - 1) / 2
  const window = { stride, pad_t: pad, pad_l: pad, pad_b: pad, pad_r: pad }
  const { dst } = graph.node('conv2d', { src, weights }, window, { name: 'conv' })
  const { mean, inv_std } = graph.node('bn_stats', { src: dst! }, { eps: 1e-3, momentum: 0.1 }, { name: 'stats', updates })
  const norm = { src: dst!, mean: mean!, inv_std: inv_std!, scale: param('scale', c), shift: param('shift', c) }
  graph.node('bn_apply', norm, { batch_stats: 1 }, { name: 'bn' })
  const seed = graph.input('seed', dst!.shape, 'f32')
  if (fuse) graph = fuseTraining(graph, TARGET)
  autodiff(graph, new Map([[graph.find('bn'), graph.find(seed.name)]]))
  verify(graph)
  return eliminateDead(graph, ['bn'])
}

const ops = (graph: Graph): string[] => graph.nodes.map((n) => n.op).filter((op) => op.startsWith('conv') || op === 'bn_stats')

describe('1x1 convolution with the statistics of its result', () => {
  it('has the same values and gradients', () => {
    const before = block({ fuse: false })
    const after = block({ fuse: true })
    expect(ops(after)).toEqual(['conv2d_stats', 'conv2d_bwd_weights', 'conv2d_bwd_data'])
    expectEqual(before, after, valuesFor(before))
  })

  it.each([{ kernel: 3 }, { stride: 2 }])('stays in two parts where the kernel is not ours: %o', (options) => {
    expect(ops(block({ ...options, fuse: true })).slice(0, 2)).toEqual(['conv2d', 'bn_stats'])
  })
})
