import { describe, expect, it } from 'vitest'
import type { Graph } from '../../ts/graph/graph.js'
import { eliminateDead, fuseTraining } from '../../ts/passes/index.js'
import { convBlock, differentiate } from './conv_block.js'
import { expectEqual, valuesFor } from './random_graph.js'

const TARGET = { device: 'cpu' } as const

interface Options {
  kernel?: number
  stride?: number
  fuse: boolean
}

function block({ kernel = 1, stride = 1, fuse }: Options): Graph {
  const graph = convBlock({ op: 'conv2d', src: [2, 7, 6, 3], weights: [5, kernel, kernel, 3], stride })
  return eliminateDead(differentiate(fuse ? fuseTraining(graph, TARGET) : graph, 'bn'), ['bn'])
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
