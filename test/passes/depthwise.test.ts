import { describe, expect, it } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import { type Activation, actCode, type Shape, type Tensor } from '../../ts/graph/types.js'
import { verify } from '../../ts/graph/verify.js'
import { autodiff, eliminateDead, fuseTraining } from '../../ts/passes/index.js'
import { anyParam } from '../graph/values.js'
import { convBlock, differentiate } from './conv_block.js'
import { expectEqual, valuesFor } from './random_graph.js'

const TARGET = { device: 'cpu' } as const

interface Options {
  kernel?: number
  stride?: number
  channels?: number
  frozen?: 'weights' | 'src'
  fuse: boolean
}

function block({ kernel = 3, stride = 1, channels = 6, frozen, fuse }: Options): Graph {
  const begin = (kernel - 1) / 2
  const graph = convBlock({
    op: 'depthwise_conv2d',
    src: [2, 7, 6, channels],
    weights: [kernel, kernel, channels],
    stride,
    pad: { begin, end: begin - (stride - 1) },
    frozen: frozen ? [frozen] : [],
  })
  return eliminateDead(differentiate(fuse ? fuseTraining(graph, TARGET) : graph, 'bn'), ['bn'])
}

const ops = (graph: Graph): string[] => graph.nodes.map((n) => n.op).filter((op) => op.startsWith('depthwise'))

interface NormOptions {
  kernel?: number
  stride?: number
  act?: Activation | null
  /** Reads the activated tensor besides. */
  second?: boolean
  batchStats?: boolean
  /** Parameters that are not trainable. */
  frozen?: readonly string[]
  fuse: boolean
}

/** BN, activation, depthwise convolution, BN: the last one as in `block`. */
function normalised(options: NormOptions): Graph {
  const { kernel = 3, stride = 1, act = 'silu', second = false, batchStats = true, frozen = [], fuse } = options
  let graph = new Graph('normalised')
  const param = (name: string, shape: Shape): Tensor => graph.parameter(name, shape, anyParam(shape), !frozen.includes(name))
  const c = [6]
  const src = param('src', [2, 7, 6, 6])
  const weights = param('weights', [kernel, kernel, 6])
  const stats = (name: string, of: Tensor) => {
    const updates = (['bn_mean', 'bn_var'] as const).map((kind) => graph.buffer(`${name}.${kind}`, c, { ...anyParam(c), kind }))
    return graph.node('bn_stats', { src: of }, { eps: 1e-3, momentum: 0.1 }, { name: `${name}.stats`, updates })
  }
  const constants = () => {
    const positive = { ...anyParam(c), kind: 'bn_var' as const }
    const inv_std = graph.node('bn_inv_std', { var: graph.buffer('var0', c, positive) }, { eps: 1e-3 }, { name: 'inv0' })[
      'inv_std'
    ]!
    return { mean: graph.buffer('mean0', c, { ...anyParam(c), kind: 'bn_mean' }), inv_std }
  }
  const { mean, inv_std } = batchStats ? stats('bn0', src) : constants()
  const norm = { src, mean: mean!, inv_std: inv_std!, scale: param('scale0', c), shift: param('shift0', c) }
  let z = graph.node('bn_apply', norm, { batch_stats: batchStats ? 1 : 0 }, { name: 'bn0' })['dst']!
  if (act) z = graph.node('activation', { src: z }, { act: actCode(act) }, { name: 'act' })['dst']!
  const pad = (kernel - 1) / 2
  const window = { stride, pad_t: pad, pad_l: pad, pad_b: pad, pad_r: pad - (stride - 1) }
  const { dst } = graph.node('depthwise_conv2d', { src: z, weights }, window, { name: 'conv' })
  const after = stats('bn1', dst!)
  const norm1 = {
    src: dst!,
    mean: after['mean']!,
    inv_std: after['inv_std']!,
    scale: param('scale1', c),
    shift: param('shift1', c),
  }
  graph.node('bn_apply', norm1, { batch_stats: 1 }, { name: 'bn1' })
  const results = ['bn1']
  if (second) {
    graph.node('activation', { src: z }, { act: actCode('relu') }, { name: 'second' })
    results.push('second')
  }
  const seeds = results.map((name) => [name, graph.input(`seed.${name}`, graph.find(name).shape, 'f32').name] as const)
  if (fuse) graph = fuseTraining(graph, TARGET)
  autodiff(graph, new Map(seeds.map(([name, seed]) => [graph.find(name), graph.find(seed)])))
  verify(graph)
  return eliminateDead(graph, results)
}

const names = (graph: Graph): string[] => graph.nodes.map((n) => n.op)

describe('depthwise convolution with the statistics of its result', () => {
  it.each([
    [3, 1],
    [3, 2],
    [5, 1],
    [5, 2],
  ])('kernel %i, stride %i: the same values and gradients', (kernel, stride) => {
    const before = block({ kernel, stride, fuse: false })
    const after = block({ kernel, stride, fuse: true })
    expect(ops(after)).toEqual(['depthwise_conv2d_stats', 'depthwise_conv2d_bwd'])
    expectEqual(before, after, valuesFor(before))
  })

  it.each([
    ['weights', 'depthwise_conv2d_bwd_data'],
    ['src', 'depthwise_conv2d_bwd_weights'],
  ] as const)('frozen %s: %s alone', (frozen, op) => {
    const before = block({ frozen, fuse: false })
    const after = block({ frozen, fuse: true })
    expect(ops(after)).toEqual(['depthwise_conv2d_stats', op])
    expectEqual(before, after, valuesFor(before))
  })

  it('stays in two parts where there is no kernel for it', () => {
    const expected = ['depthwise_conv2d', 'depthwise_conv2d_bwd_weights', 'depthwise_conv2d_bwd_data']
    expect(ops(block({ kernel: 7, fuse: true }))).toEqual(expected)
  })
})

describe('BN and activation in front of a depthwise convolution', () => {
  it.each([
    [3, 1, 'silu'],
    [3, 2, 'relu6'],
    [5, 1, null],
    [5, 2, 'silu'],
  ] as const)('kernel %i, stride %i, %s: the same values and gradients, nothing between is stored', (kernel, stride, act) => {
    const before = normalised({ kernel, stride, act, fuse: false })
    const after = normalised({ kernel, stride, act, fuse: true })
    expect(names(after)).toEqual([
      'bn_stats',
      'depthwise_conv2d_stats',
      'bn_act',
      'bn_act_bwd_reduce',
      'bn_act_bwd_apply',
      'depthwise_conv2d_bwd',
      'bn_bwd_apply',
      // The gradient of src, which is a parameter here, to its place.
      'cast',
    ])
    expect(after.tensors.filter((t) => t.name === 'bn0' || t.name === 'act')).toEqual([])
    expectEqual(before, after, valuesFor(before))
  })

  it.each([
    [['src'], false],
    [['weights'], true],
    [['src', 'scale0', 'shift0'], false],
    [['src', 'weights', 'scale0'], false],
  ] as const)('frozen %s: the other gradients are the same', (frozen, srcWanted) => {
    const before = normalised({ frozen, fuse: false })
    const after = normalised({ frozen, fuse: true })
    const linear = srcWanted ? ['bn_bwd_apply', 'cast'] : []
    expect(names(after).slice(-1 - linear.length)).toEqual(['depthwise_conv2d_bwd', ...linear])
    expectEqual(before, after, valuesFor(before))
  })

  it.each([
    ['someone else reads the activation', { second: true }],
    ['its statistics are constants', { batchStats: false }],
  ])('stays apart where %s', (_why, options) => {
    const before = normalised({ ...options, fuse: false })
    const after = normalised({ ...options, fuse: true })
    expect(names(after)).toContain('depthwise_conv2d_stats')
    expect(names(after).filter((op) => op === 'bn_act').length).toBe(2)
    expectEqual(before, after, valuesFor(before))
  })
})
