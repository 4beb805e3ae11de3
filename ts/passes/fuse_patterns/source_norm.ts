/**
 * What only pays where memory is the limit and arithmetic is cheap, on GPUs: a normalised and activated tensor between two
 * convolutions is not stored, each reader makes it again from what the first convolution stored; and of the backward part's passes
 * over wide tensors those are done where a convolution has the values in registers. To be applied behind `convBwd`.
 */
import { actCode, type Node, type Tensor } from '../../graph/types.js'
import type { Rewriter } from '../rewrite.js'
import type { GraphView, Pattern, Rewrite } from './pattern.js'

const onGpus = (target: { device: string }): boolean => target.device === 'cuda'

/** A bn_act over statistics of the batch that is nothing but act(bn(src)) times a gate. */
function plainBnAct(node: Node | undefined): Node | null {
  if (node?.op !== 'bn_act' || node.backward || node.inputs[6]) return null
  return node.attrs['batch_stats'] === 1 && !node.attrs['drop_rate'] ? node : null
}

/** Whether `node`, an op over a BN from its input 1 on, has the operands and the activation of `maker`, and no drop. */
const isOver = (node: Node, maker: Node, operands: number): boolean =>
  node.inputs.slice(1, 1 + operands).every((t, i) => t === maker.inputs[i]) &&
  node.attrs['act'] === maker.attrs['act'] &&
  !node.attrs['drop_rate']

/** The source of `maker` and the vectors of its BN, as ports of a convolution that reads through it. */
function sourceOperands(maker: Node, rewriter: Rewriter): Record<string, Tensor> {
  const ports = ['src', 'src_mean', 'src_inv_std', 'src_scale', 'src_shift', 'gate']
  return Object.fromEntries(ports.flatMap((port, i) => (maker.inputs[i] ? [[port, rewriter.to(maker.inputs[i])]] : [])))
}

/** conv2d_bwd of a gated source: diff_gate and the sums by image come from its epilogue, bn_act_bwd_sums goes. */
function gatedBackward(conv: Node, maker: Node, view: GraphView): Rewrite | null {
  const sums = view
    .readers(conv.outputs[0]!)
    .find((n) => n.op === 'bn_act_bwd_sums' && view.isFree(n) && !n.outputs[2] && isOver(n, maker, 6))
  if (!sums) return null
  return {
    removes: [conv, sums],
    emits: [
      {
        at: conv,
        run(rewriter) {
          const into = {
            diff_src: rewriter.define(conv.outputs[0]!),
            diff_weights: rewriter.define(conv.outputs[1]!),
            diff_gate: rewriter.define(sums.outputs[0]!),
            sums: rewriter.define(sums.outputs[1]!),
          }
          emitConvBwd(conv, maker, into, rewriter)
        },
      },
    ],
  }
}

/** Of one without a gate: the activation's slope and the sums of its BN come from the epilogue; what is left is linear. */
function ungatedBackward(conv: Node, maker: Node, view: GraphView): Rewrite | null {
  const diff = conv.outputs[0]!
  const readers = view.readers(diff)
  const reduce = readers.find((n) => n.op === 'bn_act_bwd_reduce' && isOver(n, maker, 5) && !n.inputs[6] && !n.inputs[7])
  const apply = readers.find((n) => n.op === 'bn_act_bwd_apply' && isOver(n, maker, 5) && !n.inputs[8] && !n.inputs[9])
  if (!reduce || !apply || readers.length !== 2 || view.escapes(diff) || apply.attrs['batch_stats'] !== 1) return null
  if (!view.isFree(reduce) || !view.isFree(apply)) return null
  return {
    removes: [conv, reduce, apply],
    emits: [
      {
        at: conv,
        run(rewriter) {
          const into = {
            diff_src: rewriter.define(diff),
            diff_weights: rewriter.define(conv.outputs[1]!),
            src_diff_scale: rewriter.define(reduce.outputs[0]!),
            src_diff_shift: rewriter.define(reduce.outputs[1]!),
          }
          emitConvBwd(conv, maker, into, rewriter)
        },
      },
      {
        at: apply,
        run(rewriter) {
          const { diff_dst, src, mean, inv_std, scale, diff_scale, diff_shift } = rewriter.inputs(apply)
          const operands = { diff_dst, src, mean, inv_std, scale, diff_scale, diff_shift } as Record<string, Tensor>
          const into = { diff_src: rewriter.define(apply.outputs[0]!) }
          rewriter.graph.node('bn_bwd_apply', operands, { batch_stats: 1 }, { name: apply.name, backward: true, into })
        },
      },
    ],
  }
}

function emitConvBwd(conv: Node, maker: Node, into: Record<string, Tensor>, rewriter: Rewriter): void {
  const inputs = { ...rewriter.inputs(conv), ...sourceOperands(maker, rewriter) }
  const attrs = { ...conv.attrs, src_act: maker.attrs['act']! }
  rewriter.graph.node('conv2d_bwd', inputs, attrs, { name: conv.name, backward: true, into })
}

/** A 1x1 convolution behind BN + activation (+ gate), backward: all that its own passes over the source's tensors were for. */
export const sourceNormBackward: Pattern = {
  name: 'source_norm_backward',
  applies: onGpus,
  match(conv, view) {
    if (conv.op !== 'conv2d_bwd' || conv.inputs[11]) return null
    const maker = plainBnAct(view.maker(conv.inputs[0]))
    if (!maker) return null
    return maker.inputs[5] ? gatedBackward(conv, maker, view) : ungatedBackward(conv, maker, view)
  },
}

/** The gradient of what a depthwise convolution's BN normalises is made on the way into the backward part of the convolution. */
export const depthwiseBehindNorm: Pattern = {
  name: 'depthwise_behind_norm',
  applies: onGpus,
  match(apply, view) {
    const plain = apply.op === 'bn_bwd_apply'
    if ((!plain && apply.op !== 'bn_act_bwd_apply') || apply.attrs['batch_stats'] !== 1 || apply.attrs['drop_rate']) return null
    const conv = view.soleReader(apply.outputs[0]!, 'depthwise_conv2d_bwd')
    if (!conv || conv.inputs[1] !== apply.outputs[0]) return null
    return {
      removes: [apply, conv],
      emits: [
        {
          at: conv,
          run(rewriter) {
            const { src: dst, ...behind } = rewriter.inputs(apply) as Record<string, Tensor>
            const { diff_dst: _, ...own } = rewriter.inputs({ ...conv, inputs: conv.inputs.with(1, null) })
            const ports = ['diff_src', 'diff_weights', 'src_diff_scale', 'src_diff_shift']
            const into = Object.fromEntries(
              ports.flatMap((port, i) => (conv.outputs[i] ? [[port, rewriter.define(conv.outputs[i])]] : [])),
            )
            const attrs = { ...conv.attrs, act: apply.attrs['act'] ?? actCode('identity') }
            const inputs = { ...own, ...behind, dst: dst! }
            rewriter.graph.node('depthwise_conv2d_bwd', inputs, attrs, { name: conv.name, backward: true, into })
          },
        },
      ],
    }
  },
}

/** A convolution that is the only one to read act(bn(src)) (times a gate) makes it on the way in. */
export const sourceNormForward: Pattern = {
  name: 'source_norm_forward',
  applies: onGpus,
  match(made, view) {
    const maker = plainBnAct(made)
    const conv = maker && view.soleReader(maker.outputs[0]!, 'conv2d_stats')
    if (!maker || !conv || conv.inputs[2]) return null
    const [, kh, kw] = conv.inputs[1]!.shape as readonly [number, number, number]
    if (maker.inputs[5] && (kh !== 1 || kw !== 1)) return null
    return {
      removes: [maker, conv],
      emits: [
        {
          at: conv,
          run(rewriter) {
            const [, weights] = conv.inputs
            const inputs = { weights: rewriter.to(weights!), ...sourceOperands(maker, rewriter) }
            const attrs = { ...conv.attrs, src_act: maker.attrs['act']! }
            const into = {
              dst: rewriter.define(conv.outputs[0]!),
              mean: rewriter.define(conv.outputs[1]!),
              inv_std: rewriter.define(conv.outputs[2]!),
            }
            const updates = conv.updates.map((t) => rewriter.to(t))
            rewriter.graph.node('conv2d_stats', inputs, attrs, { name: conv.name, into, updates })
          },
        },
      ],
    }
  },
}
