/**
 * depthwise_conv2d and the bn_stats of its result: the statistics are taken while the result is in registers. The BN and
 * activation in front, where nobody else reads what they make, are done on the way into the convolution: their result is never
 * stored.
 */
import { actCode, type Node, type Tensor } from '../../graph/types.js'
import { type GraphView, type Pattern, type Rewrite, withStats } from './pattern.js'

export const depthwiseStatsPattern: Pattern = {
  name: 'depthwise_stats',
  applies: () => true,
  match(node, view) {
    if (node.op === 'bn_apply') return behindNorm(node, view)
    return node.op === 'depthwise_conv2d' ? fused(node, null, view) : null
  },
}

/** What is done to the source on its way into the convolution. */
interface SourceNorm {
  readonly bn: Node
  readonly activation: Node | undefined
}

/** With constants instead of statistics of the batch the gradient would be another. */
function behindNorm(bn: Node, view: GraphView): Rewrite | null {
  if (bn.attrs['batch_stats'] !== 1) return null
  const activation = view.soleReader(bn.outputs[0]!, 'activation')
  const activated = (activation ?? bn).outputs[0]!
  const conv = view.soleReader(activated, 'depthwise_conv2d')
  return conv && conv.inputs[0] === activated ? fused(conv, { bn, activation }, view) : null
}

function fused(conv: Node, norm: SourceNorm | null, view: GraphView): Rewrite | null {
  if (!hasKernel(conv)) return null
  const dst = conv.outputs[0]!
  const stats = view.readers(dst).find((n) => n.op === 'bn_stats' && view.isFree(n))
  if (!stats) return null
  const before = norm ? [norm.bn, ...(norm.activation ? [norm.activation] : [])] : []
  return {
    removes: [...before, conv, stats],
    emits: [
      {
        at: conv,
        run(rewriter) {
          const to = (t: Tensor | null | undefined) => rewriter.to(t!)
          const weights = to(conv.inputs[1])
          const [src, mean, invStd, scale, shift] = norm ? norm.bn.inputs : [conv.inputs[0]]
          const operands = norm ? { src_mean: to(mean), src_inv_std: to(invStd), src_scale: to(scale), src_shift: to(shift) } : {}
          const src_act = norm?.activation?.attrs['act'] ?? actCode('identity')
          const attrs = { ...conv.attrs, ...stats.attrs, src_act }
          const inputs = { src: to(src), weights, ...operands }
          rewriter.graph.node('depthwise_conv2d_stats', inputs, attrs, { name: conv.name, ...withStats(rewriter, dst, stats) })
        },
      },
    ],
  }
}

/** What the fused kernels are made for: 3x3 and 5x5 at stride 1 and 2. */
function hasKernel(conv: Node): boolean {
  const [kh, kw] = conv.inputs[1]!.shape as readonly [number, number, number]
  return kh === kw && (kw === 3 || kw === 5) && conv.attrs['stride']! <= 2
}
