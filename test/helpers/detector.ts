/**
 * The layers that a detector has and a classifier has not, as a training graph: a lateral 1x1 convolution to the width of the
 * feature network, one of its nodes (activation, depthwise, 1x1, BN), and a head that ends in so many numbers a pixel as anchors have
 * classes or coordinates. Its pixels are averaged to have a loss.
 */
import { Graph } from '../../ts/graph/graph.js'
import { actCode, type DType, type Shape, type Tensor } from '../../ts/graph/types.js'
import { autodiff, eliminateDead, fuseBackward, fuseTraining } from '../../ts/passes/index.js'

export interface Detector {
  dtype: DType
  /** Of the backbone's tensor. */
  channels: number
  /** Of the feature network. */
  width: number
  /** Numbers a pixel: 9 anchors of 90 classes, or of 4 coordinates. */
  outputs: number
  /** Rows and columns. */
  size: readonly [number, number]
}

export function detectorGraph({ dtype, channels, width, outputs, size }: Detector): Graph {
  let graph = new Graph('detector')
  const conv = (src: Tensor, name: string, out: number): Tensor => {
    const shape: Shape = [out, 1, 1, src.shape[3]!]
    const weights = graph.parameter(`${name}.weight`, shape, { kind: 'conv', layout: 'ohwi', torchShape: shape })
    return graph.node('conv2d', { src, weights }, { stride: 1, pad_t: 0, pad_l: 0, pad_b: 0, pad_r: 0 }, { name })['dst']!
  }
  const depthwise = (src: Tensor, name: string): Tensor => {
    const shape: Shape = [3, 3, src.shape[3]!]
    const weights = graph.parameter(`${name}.weight`, shape, { kind: 'conv', layout: 'hwc', torchShape: shape })
    return graph.node('depthwise_conv2d', { src, weights }, { stride: 1, pad_t: 1, pad_l: 1, pad_b: 1, pad_r: 1 }, { name })[
      'dst'
    ]!
  }
  const norm = (src: Tensor, name: string): Tensor => {
    const shape: Shape = [src.shape[3]!]
    const info = (kind: 'bn_scale' | 'bn_shift' | 'bn_mean' | 'bn_var') =>
      ({ kind, layout: 'vector', torchShape: shape }) as const
    const updates = [
      graph.buffer(`${name}.running_mean`, shape, info('bn_mean')),
      graph.buffer(`${name}.running_var`, shape, info('bn_var')),
    ]
    const stats = graph.node(
      'bn_stats',
      { src },
      { eps: 1e-3, momentum: 0.01 },
      { name: `${name}.stats`, updates, want: ['mean', 'inv_std'] },
    )
    const scale = graph.parameter(`${name}.weight`, shape, info('bn_scale'))
    const shift = graph.parameter(`${name}.bias`, shape, info('bn_shift'))
    const inputs = { src, mean: stats['mean']!, inv_std: stats['inv_std']!, scale, shift }
    return graph.node('bn_apply', inputs, { batch_stats: 1 }, { name })['dst']!
  }
  const silu = (src: Tensor, name: string): Tensor =>
    graph.node('activation', { src }, { act: actCode('silu') }, { name })['dst']!

  // What comes from the backbone has a gradient too.
  const backbone = conv(graph.input('image', [2, ...size, 8], dtype), 'backbone', channels)
  const lateral = norm(conv(backbone, 'lateral', width), 'lateral.bn')
  const node = norm(conv(depthwise(silu(lateral, 'node.act'), 'node.dw'), 'node.pw', width), 'node.bn')
  const head = silu(norm(conv(depthwise(node, 'head.dw'), 'head.pw', width), 'head.bn'), 'head.act')
  const predicted = conv(depthwise(head, 'predict.dw'), 'predict.pw', outputs)
  const logits = graph.node('global_avg_pool', { src: predicted }, {}, { name: 'pool' })['dst']!
  const labels = graph.input('labels', [2], 'i32')
  graph.node('softmax_cross_entropy', { logits, labels }, { label_smoothing: 0 }, { name: 'loss' })
  const target = { device: 'cuda' } as const
  graph = fuseTraining(graph, target)
  autodiff(graph, graph.find('loss:loss'))
  return eliminateDead(fuseBackward(graph, target))
}
