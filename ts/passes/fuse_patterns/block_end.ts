/**
 * What a block leaves to be done with the gradient of its source, on GPUs: what the residual connection brings is added, and the sums
 * of the BN that ends the block before are taken, where the block's first convolution has the values in registers. To be applied
 * behind `sourceNormBackward`, which takes the sources that are normalised.
 */
import { actCode, type Node, type Tensor } from '../../graph/types.js'
import { type GraphView, otherOperand, type Pattern } from './pattern.js'

const SRC_NORM = 11
const ADDEND = 15
const END_SRC = 16

const isMadeBefore = (conv: Node, t: Tensor | null, view: GraphView): boolean => (view.maker(t)?.id ?? -1) < conv.id

/** The sum with another gradient that is there before `conv`, if nobody else reads the convolution's own. */
function sumOf(conv: Node, view: GraphView): { sum: Node; addend: Tensor } | null {
  const diff = conv.outputs[0]!
  const sum = view.soleReader(diff, 'add')
  if (!sum) return null
  const addend = otherOperand(sum, diff)
  return isMadeBefore(conv, addend, view) ? { sum, addend } : null
}

/** The sums of `diff` for a BN that nothing but stochastic depth and a residual follow. */
function reduceOf(conv: Node, diff: Tensor, view: GraphView): Node | undefined {
  return view
    .readers(diff)
    .find(
      (n) =>
        n.op === 'bn_act_bwd_reduce' &&
        view.isFree(n) &&
        n.inputs[0] === diff &&
        n.attrs['act'] === actCode('identity') &&
        !n.inputs[6] &&
        !n.inputs[7] &&
        n.inputs.slice(1).every((t) => isMadeBefore(conv, t, view)),
    )
}

export const blockEnd: Pattern = {
  name: 'block_end',
  applies: (target) => target.device === 'cuda',
  match(conv, view) {
    if (conv.op !== 'conv2d_bwd' || conv.inputs[SRC_NORM] || conv.inputs[ADDEND] || conv.inputs[END_SRC]) return null
    const added = sumOf(conv, view)
    const diff = added ? added.sum.outputs[0]! : conv.outputs[0]!
    const reduce = reduceOf(conv, diff, view)
    if (!added && !reduce) return null
    return {
      removes: [conv, ...(added ? [added.sum] : []), ...(reduce ? [reduce] : [])],
      emits: [
        {
          at: conv,
          run(rewriter) {
            const inputs = { ...rewriter.inputs(conv), ...(added && { addend: rewriter.to(added.addend) }) }
            const attrs = { ...conv.attrs }
            const into: Record<string, Tensor> = {
              diff_src: rewriter.define(diff),
              diff_weights: rewriter.define(conv.outputs[1]!),
            }
            if (reduce) {
              const { src, mean, inv_std } = rewriter.inputs(reduce)
              Object.assign(inputs, { end_src: src, end_mean: mean, end_inv_std: inv_std })
              Object.assign(attrs, { end_drop_rate: reduce.attrs['drop_rate'], end_rng_stream: reduce.attrs['rng_stream'] })
              into['src_diff_scale'] = rewriter.define(reduce.outputs[0]!)
              into['src_diff_shift'] = rewriter.define(reduce.outputs[1]!)
            }
            rewriter.graph.node('conv2d_bwd', inputs, attrs, { name: conv.name, backward: true, into })
          },
        },
      ],
    }
  },
}
