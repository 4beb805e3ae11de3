/** conv2d and the bn_stats of its result: the statistics are taken while rows of the result are in L1. */
import { actCode, type Node } from '../../graph/types.js'
import { type Pattern, withStats } from './pattern.js'

export const convStatsPattern: Pattern = {
  name: 'conv_stats',
  applies: () => true,
  match(conv, view, target) {
    if (conv.op !== 'conv2d' || (target.device === 'cpu' && !isPointwise(conv))) return null
    const dst = conv.outputs[0]!
    const stats = view.readers(dst).find((n) => n.op === 'bn_stats' && view.isFree(n))
    if (!stats) return null
    return {
      removes: [conv, stats],
      emits: [
        {
          at: conv,
          run(rewriter) {
            const attrs = { ...conv.attrs, ...stats.attrs, src_act: actCode('identity') }
            const results = withStats(rewriter, dst, stats)
            rewriter.graph.node('conv2d_stats', rewriter.inputs(conv), attrs, { name: conv.name, ...results })
          },
        },
      ],
    }
  },
}

/** What our own kernel for CPUs is for; the library's convolutions have no place for statistics. */
function isPointwise({ inputs, attrs }: Node): boolean {
  const [, kh, kw] = inputs[1]!.shape as readonly [number, number, number]
  return kh === 1 && kw === 1 && attrs['stride'] === 1
}
