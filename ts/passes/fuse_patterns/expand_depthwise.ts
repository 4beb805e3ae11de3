/**
 * Inference: where the tensor between an expansion and its depthwise convolution is larger than a core's cache, both become
 * one op that makes it in bands which stay there. After the folding of BN.
 */
import { attr } from '../../graph/ops/check.js'
import { convAttrs } from '../../graph/ops/conv_geometry.js'
import { dtypeBytes, type Node } from '../../graph/types.js'
import type { GraphView, Pattern } from './pattern.js'

/** Of an image; below, the tensor stays in the cache between two ops anyway and its rows would be computed twice for nothing. */
const LEAST_WIDE_BYTES = 800 << 10
/** A vector of the widest instruction set. */
const LEAST_CHANNELS = 16

export const expandDepthwisePattern = (leastWideBytes = LEAST_WIDE_BYTES): Pattern => ({
  name: 'expand_depthwise',
  // It keeps an image's wide tensor in a core's cache.
  applies: ({ device }) => device === 'cpu',
  match(expand, view) {
    const depthwise = depthwiseAfter(expand, view, leastWideBytes)
    if (!depthwise) return null
    return {
      removes: [expand, depthwise],
      emits: [
        {
          at: depthwise,
          run(rewriter) {
            const [src, weights, bias] = expand.inputs.map((t) => t && rewriter.to(t))
            const [depthwise_weights, depthwise_bias] = depthwise.inputs.slice(1).map((t) => rewriter.to(t!))
            const [z, mean] = depthwise.outputs
            const into = { dst: rewriter.define(z!), ...(mean && { pooled: rewriter.define(mean) }) }
            rewriter.graph.node(
              'expand_depthwise_bias_act',
              { src, weights, bias, depthwise_weights, depthwise_bias },
              { expand_act: attr(expand.attrs, 'act'), ...convAttrs(depthwise.attrs), act: attr(depthwise.attrs, 'act') },
              { name: depthwise.name, into },
            )
          },
        },
      ],
    }
  },
})

function depthwiseAfter(expand: Node, view: GraphView, leastWideBytes: number): Node | null {
  if (expand.op !== 'conv2d_bias_act' || expand.inputs[3] || expand.inputs[4]) return null
  const weights = expand.inputs[1]!
  const wide = expand.outputs[0]!
  const [channels, kh, kw, terms] = weights.shape as [number, number, number, number]
  const pointwise = kh === 1 && kw === 1 && attr(expand.attrs, 'stride') === 1 && expand.inputs[0]!.shape[1] === wide.shape[1]
  // bf16 sums pairs of terms.
  if (!pointwise || channels < LEAST_CHANNELS || (wide.dtype === 'bf16' && terms % 2 === 1)) return null
  if (wide.shape[1]! * wide.shape[2]! * channels * dtypeBytes(wide.dtype) < leastWideBytes) return null
  const depthwise = view.soleReader(wide, 'depthwise_conv2d_bias_act')
  if (!depthwise) return null
  const [rows, columns] = depthwise.inputs[1]!.shape
  const stride = attr(depthwise.attrs, 'stride')
  return rows === columns && (rows === 3 || rows === 5) && (stride === 1 || stride === 2) ? depthwise : null
}
