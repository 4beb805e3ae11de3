/** A convolution with batch normalisation, differentiated from a seed: what the passes around it are tested on. */
import { Graph } from '../../ts/graph/graph.js'
import { type Activation, actCode, type Shape, type Tensor } from '../../ts/graph/types.js'
import { verify } from '../../ts/graph/verify.js'
import { autodiff } from '../../ts/passes/index.js'
import { anyParam } from '../graph/values.js'

export interface ConvBlock {
  op: 'conv2d' | 'depthwise_conv2d'
  /** Of parameters `src` and `weights`. */
  src: Shape
  weights: Shape
  stride?: number
  /** Default: so that the size stays at stride 1. */
  pad?: { begin: number; end: number }
  /** Behind the normalisation; its result is then `out`, else `bn`. */
  act?: Activation
  /** Parameters that are not trainable. */
  frozen?: readonly string[]
}

/** The forward part: `conv`, `stats`, `bn`, `out`, and the input `seed` for the gradient of the last. */
export function convBlock({ op, src, weights, stride = 1, pad, act, frozen = [] }: ConvBlock): Graph {
  const graph = new Graph('block')
  const param = (name: string, shape: Shape): Tensor => graph.parameter(name, shape, anyParam(shape), !frozen.includes(name))
  const operands = { src: param('src', src), weights: param('weights', weights) }
  const depthwise = op === 'depthwise_conv2d'
  const side = depthwise ? weights[0]! : weights[1]!
  const { begin, end } = pad ?? { begin: (side - 1) / 2, end: (side - 1) / 2 }
  const c = [depthwise ? weights[2]! : weights[0]!]
  const updates = (['bn_mean', 'bn_var'] as const).map((kind) => graph.buffer(kind, c, { ...anyParam(c), kind }))
  const window = { stride, pad_t: begin, pad_l: begin, pad_b: end, pad_r: end }
  const { dst } = graph.node(op, operands, window, { name: 'conv' })
  const { mean, inv_std } = graph.node('bn_stats', { src: dst! }, { eps: 1e-3, momentum: 0.1 }, { name: 'stats', updates })
  const norm = { src: dst!, mean: mean!, inv_std: inv_std!, scale: param('scale', c), shift: param('shift', c) }
  const bn = graph.node('bn_apply', norm, { batch_stats: 1 }, { name: 'bn' })['dst']!
  if (act) graph.node('activation', { src: bn }, { act: actCode(act) }, { name: 'out' })
  graph.input('seed', dst!.shape, 'f32')
  return graph
}

/** Appends the gradients of `root` (a name) from the input `seed`. */
export function differentiate(graph: Graph, root: string): Graph {
  autodiff(graph, new Map([[graph.find(root), graph.find('seed')]]))
  verify(graph)
  return graph
}
