/** Convolution with folded BN, for inference. Compositions of conv, bias, activation, gate, residual and pooling. */
import type { Tensor } from '../types.js'
import { activationReference } from './activation.js'
import { addReference } from './add.js'
import { channelScaleReference } from './channel_scale.js'
import {
  at,
  attr,
  expectAct,
  expectChannels,
  expectImages,
  expectPerSample,
  expectType,
  fail,
  refTensor,
  show,
  spec,
} from './check.js'
import { conv2dFlops, conv2dReference, conv2dShape } from './conv2d.js'
import type { OpDef, RefTensor } from './def.js'
import { depthwiseFlops, depthwiseReference, depthwiseShape } from './depthwise_conv2d.js'
import { globalAvgPoolReference } from './global_avg_pool.js'

function biasReference(src: RefTensor, bias: RefTensor): RefTensor {
  const c = bias.data.length
  return refTensor(
    src.shape,
    src.data.map((v, i) => v + bias.data[i % c]!),
  )
}

const withShape = (like: Tensor, shape: readonly number[]): Tensor => ({ ...like, shape })

/** dst = act(conv(src * gate) + bias) + residual. */
export const conv2dBiasAct: OpDef = {
  name: 'conv2d_bias_act',
  infer(inputs, attrs) {
    const [src, weights] = [at(inputs, 0), at(inputs, 1)]
    expectImages('src', src)
    expectType('weights', weights, 'f32')
    expectAct(attrs)
    const shape = conv2dShape(src.shape, weights.shape, attrs)
    expectChannels('bias', at(inputs, 2), 'dst', withShape(src, shape))
    expectPerSample('gate', inputs[3], 'src', src)
    const residual = inputs[4]
    if (residual && (residual.shape.join() !== shape.join() || residual.dtype !== src.dtype)) {
      fail(`residual ${show(residual)} and dst ${show({ shape, dtype: src.dtype })} must be alike`)
    }
    return [spec(shape, src.dtype)]
  },
  reference(inputs, attrs, _outputs, ctx) {
    const [src, gate, residual] = [at(inputs, 0), inputs[3], inputs[4]]
    const gated = ctx.operand(gate ? channelScaleReference(src, gate) : src)
    const conv = conv2dReference(gated, ctx.operand(at(inputs, 1)), attrs)
    const dst = activationReference(biasReference(conv, at(inputs, 2)), attr(attrs, 'act'))
    return [residual ? addReference(dst, residual) : dst]
  },
  flops: (node) => conv2dFlops(at(node.outputs, 0).shape, at(node.inputs, 1).shape),
}

/** dst = act(conv(src) + bias); pooled [N, C] = mean over H and W of dst as stored. */
export const depthwiseConv2dBiasAct: OpDef = {
  name: 'depthwise_conv2d_bias_act',
  infer(inputs, attrs) {
    const [src, weights] = [at(inputs, 0), at(inputs, 1)]
    expectImages('src', src)
    expectType('weights', weights, 'f32')
    expectAct(attrs)
    const shape = depthwiseShape(src.shape, weights.shape, attrs)
    expectChannels('bias', at(inputs, 2), 'dst', withShape(src, shape))
    return [spec(shape, src.dtype), spec([shape[0]!, shape[3]!], 'f32')]
  },
  reference(inputs, attrs, outputs, ctx) {
    const conv = depthwiseReference(at(inputs, 0), at(inputs, 1), attrs)
    const dst = ctx.round(activationReference(biasReference(conv, at(inputs, 2)), attr(attrs, 'act')), at(outputs, 0).dtype)
    return [dst, outputs[1] ? globalAvgPoolReference(dst) : null]
  },
  flops: (node) => depthwiseFlops(at(node.outputs, 0).shape, at(node.inputs, 1).shape),
}
