/** The expansion of an inverted bottleneck and its depthwise convolution as one op, for inference. */
import { at, attr, expectAct, fail } from './check.js'
import { conv2dBiasAct, depthwiseConv2dBiasAct } from './conv_bias_act.js'
import type { Attrs, OpDef } from './def.js'

const POINTWISE = { stride: 1, pad_t: 0, pad_l: 0, pad_b: 0, pad_r: 0 }
const expansion = (attrs: Attrs): Attrs => ({ ...POINTWISE, act: attr(attrs, 'expand_act') })

/**
 * wide = expand_act(conv1x1(src) + bias), rounded to the type of src; dst = act(depthwise(wide) + depthwise_bias);
 * pooled [N, C] = mean over H and W of dst as stored. `wide` exists in the core's cache only.
 */
export const expandDepthwiseBiasAct: OpDef = {
  name: 'expand_depthwise_bias_act',
  infer(inputs, attrs, hints) {
    const [src, weights, bias, depthwiseWeights, depthwiseBias] = inputs
    if (at([weights!], 0).shape[1] !== 1 || weights!.shape[2] !== 1) fail(`weights [${weights!.shape.join(', ')}] are not 1x1`)
    expectAct({ act: attr(attrs, 'expand_act') })
    const [wide] = conv2dBiasAct.infer([src!, weights!, bias!, null, null], expansion(attrs), hints)
    return depthwiseConv2dBiasAct.infer([{ ...src!, ...wide! }, depthwiseWeights!, depthwiseBias!], attrs, hints)
  },
  reference(inputs, attrs, outputs, ctx) {
    const [src, weights, bias, depthwiseWeights, depthwiseBias] = inputs
    const [wide] = conv2dBiasAct.reference!([src!, weights!, bias!, null, null], expansion(attrs), outputs, ctx)
    const stored = ctx.round(wide!, at(outputs, 0).dtype)
    return depthwiseConv2dBiasAct.reference!([stored, depthwiseWeights!, depthwiseBias!], attrs, outputs, ctx)
  },
  flops(node) {
    const [src, weights, , taps] = node.inputs
    const [n, h, w] = src!.shape
    const [channels, , , terms] = weights!.shape
    const [, oh, ow] = at(node.outputs, 0).shape
    return 2 * n! * channels! * (h! * w! * terms! + oh! * ow! * taps!.shape[0]! * taps!.shape[1]!)
  },
}
