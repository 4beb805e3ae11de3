/** depthwise_conv2d and the bn_stats of its result: the statistics are taken while the result is in registers. */
import type { Node } from '../../graph/types.js'
import type { Pattern } from './pattern.js'

export const depthwiseStatsPattern: Pattern = {
  name: 'depthwise_stats',
  applies: () => true,
  match(conv, view) {
    if (conv.op !== 'depthwise_conv2d' || !hasKernel(conv)) return null
    const dst = conv.outputs[0]!
    const stats = view.readers(dst).find((n) => n.op === 'bn_stats' && view.isFree(n))
    if (!stats) return null
    return {
      removes: [conv, stats],
      emits: [
        {
          at: conv,
          run(rewriter) {
            const into = {
              dst: rewriter.define(dst),
              mean: rewriter.define(stats.outputs[0]!),
              inv_std: rewriter.define(stats.outputs[1]!),
            }
            const attrs = { ...conv.attrs, ...stats.attrs }
            const updates = stats.updates.map((t) => rewriter.to(t))
            rewriter.graph.node('depthwise_conv2d_stats', rewriter.inputs(conv), attrs, { name: conv.name, updates, into })
          },
        },
      ],
    }
  },
}

/** What the fused kernels are made for: 3x3 and 5x5 at stride 1 and 2, a vector of channels at least. */
function hasKernel(conv: Node): boolean {
  const [kh, kw, channels] = conv.inputs[1]!.shape as readonly [number, number, number]
  return kh === kw && (kw === 3 || kw === 5) && conv.attrs['stride']! <= 2 && channels >= 16
}
