/**
 * Dense convolution of src (times gate [N, I], for 1x1 ones) with statistics of dst: conv2d and bn_stats in one. Statistics are
 * of the stored values. Given the operands of a BN with batch statistics of src, it convolves src_act(bn(src)). Only passes behind
 * autodiff give it these or a gate, so that nobody asks for their gradients.
 */
import { bnStatsReference, expectRunning } from './batch_norm.js'
import { at, expectImages, expectPerSample, expectType, spec } from './check.js'
import { conv2d, conv2dFlops, conv2dReference, conv2dShape } from './conv2d.js'
import type { OpDef } from './def.js'
import { expectSourceNorm, sourceReference } from './source_norm.js'

export const conv2dStats: OpDef = {
  name: 'conv2d_stats',
  infer(inputs, attrs, hints) {
    const [src, weights] = [at(inputs, 0), at(inputs, 1)]
    expectImages('src', src)
    expectType('weights', weights, 'f32')
    expectPerSample('gate', inputs[2], 'src', src)
    expectSourceNorm(inputs, attrs, 3)
    const dst = conv2dShape(src.shape, weights.shape, attrs)
    const channels = [dst[3]!]
    expectRunning(channels, hints)
    return [spec(dst, src.dtype), spec(channels, 'f32'), spec(channels, 'f32')]
  },
  // The part of the statistics is in the gradient of what they normalise, as with bn_stats.
  grad: (ctx) => conv2d.grad!(ctx),
  reference(inputs, attrs, outputs, ctx) {
    const src = ctx.operand(sourceReference(inputs, attrs, 3, ctx, inputs[2]))
    const exact = conv2dReference(src, ctx.operand(at(inputs, 1)), attrs)
    const dst = ctx.round(exact, at(outputs, 0).dtype)
    return [dst, ...bnStatsReference(dst, attrs, ctx)]
  },
  flops: (node) => conv2dFlops(at(node.outputs, 0).shape, at(node.inputs, 1).shape),
}
