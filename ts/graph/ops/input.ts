/** Ops that make tensors of the activation type: from uint8 images, from another type, from a constant. */
import type { Tensor } from '../types.js'
import { at, attr, expectRank, expectType, fail, hintedShape, refTensor, show, spec } from './check.js'
import type { Attrs, OpDef, RefTensor } from './def.js'

const triple = (attrs: Attrs, name: string): number[] => [0, 1, 2].map((i) => attr(attrs, `${name}${i}`))

/** uint8 images of three channels, with the constants that they are normalised by. */
export function expectPixels(src: Tensor, attrs: Attrs): void {
  expectRank('src', src, 4)
  expectType('src', src, 'u8')
  if (src.shape[3] !== 3) fail(`src ${show(src)} must have 3 channels`)
  for (const std of triple(attrs, 'std')) if (!(std > 0)) fail(`std ${std} must be above 0`)
}

export function normalizeReference(src: RefTensor, attrs: Attrs): RefTensor {
  const [mean, std] = [triple(attrs, 'mean'), triple(attrs, 'std')]
  return refTensor(
    src.shape,
    src.data.map((v, i) => (v - mean[i % 3]!) / std[i % 3]!),
  )
}

/** dst = (src - mean) / std per channel, mean and std in 0..255; src u8 [N, H, W, 3]. */
export const inputNormalize: OpDef = {
  name: 'input_normalize',
  infer(inputs, attrs, hints) {
    const src = at(inputs, 0)
    expectPixels(src, attrs)
    return [spec(src.shape, hints.dtype ?? 'f32')]
  },
  reference: (inputs, attrs) => [normalizeReference(at(inputs, 0), attrs)],
}

/** Change of storage type; to the same type it is a copy. */
export const cast: OpDef = {
  name: 'cast',
  infer(inputs, _attrs, hints) {
    const src = at(inputs, 0)
    return [spec(src.shape, hints.dtype ?? fail('the type to cast to must be given'))]
  },
  grad(ctx) {
    if (!ctx.wants(0)) return [null]
    return [ctx.emit('cast', 'bwd', { src: at(ctx.diffOutputs, 0) }, {}, { dtype: at(ctx.node.inputs, 0).dtype })['dst']!]
  },
  reference: (inputs) => [refTensor(at(inputs, 0).shape, at(inputs, 0).data.slice())],
}

/** A constant tensor. */
export const fill: OpDef = {
  name: 'fill',
  infer: (_inputs, _attrs, hints) => [spec(hintedShape(hints, 'dst'), hints.dtype ?? 'f32')],
  reference: (_inputs, attrs, outputs) => {
    const dst = refTensor(at(outputs, 0).shape)
    dst.data.fill(attr(attrs, 'value'))
    return [dst]
  },
}
