/**
 * Inference: a convolution and the BN with running statistics behind it become one convolution with folded weights and bias,
 * which also does the activation, the gate on its source (1x1 only), the residual, and (depthwise) the pooling for the gate.
 */

import { attr } from '../../graph/ops/check.js'
import { convAttrs } from '../../graph/ops/conv_geometry.js'
import { actCode, type Node, type Tensor } from '../../graph/types.js'
import type { Rewriter } from '../rewrite.js'
import { type Emission, type GraphView, otherOperand, type Pattern } from './pattern.js'

interface Folded {
  readonly conv: Node
  readonly bn: Node
  /** bn_inv_std of the running variance. */
  readonly invStd: Node
  readonly depthwise: boolean
}

export const convBiasActPattern: Pattern = {
  name: 'conv_bias_act',
  applies: () => true,
  match(conv, view) {
    const folded = foldable(conv, view)
    if (!folded) return null
    const { bn, invStd, depthwise } = folded
    const activation = view.soleReader(bn.outputs[0]!, 'activation')
    const act = activation?.attrs['act'] ?? actCode('identity')
    const body = activation ? [conv, bn, activation] : [conv, bn]
    const z = body.at(-1)!.outputs[0]!
    const extra = view.soleReader(invStd.outputs[0]!, 'bn_apply') ? [invStd] : []

    if (depthwise) {
      const pool = view.readers(z).find((n) => n.op === 'global_avg_pool' && view.isFree(n))
      return {
        removes: [...body, ...extra, ...(pool ? [pool] : [])],
        emits: [emitFold(folded), { at: body.at(-1)!, run: (rewriter) => emitDepthwise(rewriter, folded, act, z, pool) }],
      }
    }
    const scale = gateOf(conv, view)
    const add = view.soleReader(z, 'add')
    const nodes = add ? [...body, add] : body
    const dense = { act, scale, residual: add ? otherOperand(add, z) : null, dst: nodes.at(-1)!.outputs[0]! }
    return {
      removes: [...nodes, ...extra, ...(scale ? [scale] : [])],
      emits: [emitFold(folded), { at: nodes.at(-1)!, run: (rewriter) => emitDense(rewriter, folded, dense) }],
    }
  },
}

function foldable(conv: Node, view: GraphView): Folded | null {
  if (conv.op !== 'conv2d' && conv.op !== 'depthwise_conv2d') return null
  const bn = view.soleReader(conv.outputs[0]!, 'bn_apply')
  if (!bn || bn.inputs[0] !== conv.outputs[0] || bn.attrs['batch_stats'] !== 0) return null
  const invStd = view.maker(bn.inputs[2])
  const constants = [conv.inputs[1], bn.inputs[1], bn.inputs[3], bn.inputs[4], invStd?.inputs[0]]
  if (invStd?.op !== 'bn_inv_std' || !constants.every((t) => t?.role === 'parameter' || t?.role === 'buffer')) return null
  return { conv, bn, invStd, depthwise: conv.op === 'depthwise_conv2d' }
}

/** The channel_scale that makes src of a 1x1 convolution for it alone. */
function gateOf(conv: Node, view: GraphView): Node | null {
  const [src, weights] = conv.inputs
  const scale = view.maker(src)
  const pointwise = weights!.shape[1] === 1 && weights!.shape[2] === 1 && attr(conv.attrs, 'stride') === 1
  if (!pointwise || scale?.op !== 'channel_scale' || !view.isFree(scale)) return null
  return view.soleReader(src!, 'conv2d') === conv ? scale : null
}

const foldedNames = (conv: Node) => ({ folded_weights: `${conv.name}.folded_weights`, folded_bias: `${conv.name}.folded_bias` })

function emitFold({ conv, bn, invStd, depthwise }: Folded): Emission {
  return {
    at: 'prepare',
    run(rewriter) {
      const operands = {
        weights: conv.inputs[1],
        scale: bn.inputs[3],
        shift: bn.inputs[4],
        running_mean: bn.inputs[1],
        running_var: invStd.inputs[0],
      }
      const inputs = Object.fromEntries(Object.entries(operands).map(([port, t]) => [port, rewriter.to(t!)]))
      const attrs = { eps: attr(invStd.attrs, 'eps'), depthwise: depthwise ? 1 : 0 }
      const options = { name: `${conv.name}.fold`, prepare: true, role: 'prepared', outputNames: foldedNames(conv) } as const
      rewriter.graph.node('fold_bn', inputs, attrs, options)
    },
  }
}

function foldedInputs(rewriter: Rewriter, conv: Node): { weights: Tensor; bias: Tensor } {
  const names = foldedNames(conv)
  return { weights: rewriter.graph.find(names.folded_weights), bias: rewriter.graph.find(names.folded_bias) }
}

function emitDepthwise(rewriter: Rewriter, { conv }: Folded, act: number, z: Tensor, pool: Node | undefined): void {
  const inputs = { src: rewriter.to(conv.inputs[0]!), ...foldedInputs(rewriter, conv) }
  const into = { dst: rewriter.define(z), pooled: pool && rewriter.define(pool.outputs[0]!) }
  rewriter.graph.node('depthwise_conv2d_bias_act', inputs, { ...convAttrs(conv.attrs), act }, { name: conv.name, into })
}

interface Dense {
  readonly act: number
  readonly scale: Node | null
  readonly residual: Tensor | null
  readonly dst: Tensor
}

function emitDense(rewriter: Rewriter, { conv }: Folded, { act, scale, residual, dst }: Dense): void {
  const inputs = {
    src: rewriter.to((scale ? scale.inputs[0] : conv.inputs[0])!),
    ...foldedInputs(rewriter, conv),
    gate: scale && rewriter.to(scale.inputs[1]!),
    residual: residual && rewriter.to(residual),
  }
  rewriter.graph.node(
    'conv2d_bias_act',
    inputs,
    { ...convAttrs(conv.attrs), act },
    { name: conv.name, into: { dst: rewriter.define(dst) } },
  )
}
