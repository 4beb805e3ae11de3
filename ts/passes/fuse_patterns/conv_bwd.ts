/**
 * The gradient of what a batch normalisation normalises and the two gradients of the 1x1 convolution that made it: one pass over
 * rows, so that the gradient in the middle is neither written nor read. To be applied behind autodiff.
 */
import { elements, type Node } from '../../graph/types.js'
import type { Pattern } from './pattern.js'

/**
 * Below, the tensor in the middle is still in the caches when it is read, and three passes are each cut as suits them. Measured; more
 * than from where kernels write past the caches (`past_caches_bytes` of native/cpu/caches.h), since two readers share what is left.
 */
const MANY_BYTES = 32 << 20

/** Where the gradient in the middle has more bytes than `where` and the CPU's kernel is made for it, or always. */
export const convBwd = (where: number | 'always' = MANY_BYTES): Pattern => ({
  name: 'conv_bwd',
  applies: () => true,
  match(apply, view) {
    if (!isPlain(apply)) return null
    const diff = apply.outputs[0]!
    const readers = view.readers(diff)
    const weights = readers.find((n) => n.op === 'conv2d_bwd_weights')
    const data = readers.find((n) => n.op === 'conv2d_bwd_data')
    if (readers.length !== 2 || !weights || !data || view.escapes(diff)) return null
    // The fused op stands where the later of the two did: nobody may read the earlier one's result before.
    const results = [weights.outputs[0]!, data.outputs[0]!]
    if (results.some((t) => view.readers(t).some((n) => n.id < last(weights, data).id))) return null
    if (!view.isFree(weights) || !view.isFree(data) || !pays(weights, data, where)) return null
    return {
      removes: [apply, weights, data],
      emits: [
        {
          at: last(weights, data),
          run(rewriter) {
            const { diff_dst, src: dst, ...norm } = rewriter.inputs(apply)
            const into = {
              diff_src: rewriter.define(data.outputs[0]!),
              diff_weights: rewriter.define(weights.outputs[0]!),
            }
            const [src, matrix] = [rewriter.to(weights.inputs[0]!), rewriter.to(data.inputs[1]!)]
            const none = { act: 0, drop_rate: 0, rng_stream: 0, src_act: 0, end_drop_rate: 0, end_rng_stream: 0 }
            const attrs = { ...none, ...apply.attrs, ...data.attrs }
            const inputs = { src, weights: matrix, diff_dst: diff_dst!, dst: dst!, ...norm }
            rewriter.graph.node('conv2d_bwd', inputs, attrs, { name: `${data.name}_weights`, backward: true, into })
          },
        },
      ],
    }
  },
})

const last = (a: Node, b: Node): Node => (a.id > b.id ? a : b)

/** Neither gate nor pooling: they belong to a block's inner BN. */
function isPlain({ op, inputs }: Node): boolean {
  return op === 'bn_bwd_apply' || (op === 'bn_act_bwd_apply' && !inputs[8] && !inputs[9])
}

function pays(weights: Node, data: Node, where: number | 'always'): boolean {
  const [o, kh, kw, i] = weights.outputs[0]!.shape as readonly [number, number, number, number]
  const diff = data.inputs[0]!
  if (kh !== 1 || kw !== 1 || data.attrs['stride'] !== 1) return false
  return where === 'always' || (diff.dtype === 'f32' && o > i && 4 * elements(diff.shape) > where)
}
