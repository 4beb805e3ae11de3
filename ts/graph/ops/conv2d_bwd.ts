/**
 * Both gradients of a 1x1 convolution whose result `dst` is normalised: bn_act_bwd_apply, then conv2d_bwd_data and
 * conv2d_bwd_weights of what it makes, which is never stored. `diff_dst` is the gradient of the normalised and activated value.
 */
import { expectSums } from './batch_norm.js'
import { bnActBwdApply } from './bn_act.js'
import { at, expectImages, expectRate, expectSame, expectType, fail, show, spec } from './check.js'
import { conv2dBwdDataReference, conv2dBwdWeightsReference, conv2dFlops, conv2dShape } from './conv2d.js'
import type { OpDef } from './def.js'

export const conv2dBwd: OpDef = {
  name: 'conv2d_bwd',
  infer(inputs, attrs) {
    const [src, weights, dst] = [at(inputs, 0), at(inputs, 1), at(inputs, 3)]
    expectImages('src', src)
    expectType('src', src, 'f32')
    expectType('weights', weights, 'f32')
    expectType('dst', dst, src.dtype)
    expectSame('diff_dst', at(inputs, 2), 'dst', dst)
    if (
      conv2dShape(src.shape, weights.shape, attrs).join() !== dst.shape.join() ||
      weights.shape[1] !== 1 ||
      weights.shape[2] !== 1
    )
      fail(`dst ${show(dst)} is not of a 1x1 convolution of src ${show(src)}`)
    expectRate(attrs)
    expectSums(attrs, dst, inputs[8], inputs[9])
    return [spec(src.shape, src.dtype), spec(weights.shape, 'f32')]
  },
  reference(inputs, attrs, outputs, ctx) {
    const [src, weights, diffDst, ...norm] = inputs
    const [diff] = bnActBwdApply.reference([diffDst!, ...norm, null, null], attrs, [], ctx)
    return [
      conv2dBwdDataReference(diff!, weights!, attrs, at(outputs, 0).shape),
      conv2dBwdWeightsReference(src!, diff!, attrs, at(outputs, 1).shape),
    ]
  },
  flops: (node) => 2 * conv2dFlops(at(node.inputs, 3).shape, at(node.inputs, 1).shape),
}
