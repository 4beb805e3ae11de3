/**
 * Convolutions of uint8 images [N, H, W, 3] that normalise them on the way in: input_normalize to the type of the activations,
 * rounded as it would be stored, then the op of the same name without `input_`. Padding is 0 among the normalised values. Only
 * passes behind autodiff and for inference make them.
 */
import type { OpName } from '../op_table.js'
import { actCode, type DType, type Tensor } from '../types.js'
import { at, fail } from './check.js'
import { conv2dBiasAct } from './conv_bias_act.js'
import { conv2dBwdWeights } from './conv2d.js'
import { conv2dStats } from './conv2d_stats.js'
import type { Attrs, Inputs, OpDef } from './def.js'
import { expectPixels, normalizeReference } from './input.js'

const withoutNorm = (attrs: Attrs): Attrs => ({ ...attrs, src_act: actCode('identity') })

/** `typeOf`: of the images, by the op's inputs and its first result, where that has been made. */
function normalizing(name: OpName, conv: OpDef, typeOf: (inputs: Inputs, dst: DType | undefined) => DType): OpDef {
  return {
    name,
    infer(inputs, attrs, hints) {
      const src = at(inputs, 0)
      expectPixels(src, attrs)
      const images: Tensor = { ...src, dtype: typeOf(inputs, hints.dtype) }
      return conv.infer([images, ...inputs.slice(1)], withoutNorm(attrs), hints)
    },
    reference(inputs, attrs, outputs, ctx) {
      const dtype = typeOf(ctx.node.inputs, at(outputs, 0).dtype)
      const images = ctx.round(normalizeReference(at(inputs, 0), attrs), dtype)
      return conv.reference([images, ...inputs.slice(1)], withoutNorm(attrs), outputs, ctx)
    },
    flops: conv.flops!,
  }
}

const asDst = (_: Inputs, dst: DType | undefined): DType => dst ?? fail('the type of dst must be given')
const asDiffDst = (inputs: Inputs): DType => at(inputs, 1).dtype

export const inputConv2dStats = normalizing('input_conv2d_stats', conv2dStats, asDst)
export const inputConv2dBiasAct = normalizing('input_conv2d_bias_act', conv2dBiasAct, asDst)
export const inputConv2dBwdWeights = normalizing('input_conv2d_bwd_weights', conv2dBwdWeights, asDiffDst)
