/** Depthwise convolution: src [N, H, W, C], weights HWC [kh, kw, C], dst [N, H', W', C]. */
import { elements, type Shape } from '../types.js'
import { bnStatsReference, expectRunning } from './batch_norm.js'
import { at, expectImages, expectType, fail, hintedShape, refTensor, show, spec } from './check.js'
import { convAttrs, firstTap, lastTap, windowOf } from './conv_geometry.js'
import type { Attrs, OpDef, RefTensor } from './def.js'

export function depthwiseShape(src: Shape, weights: Shape, attrs: Attrs): Shape {
  const [kh, kw, c] = weights
  if (weights.length !== 3 || src.length !== 4 || src[3] !== c) {
    fail(`src [${src.join(', ')}] and weights [${weights.join(', ')}] (HWC) do not fit`)
  }
  const w = windowOf(src, kh!, kw!, attrs)
  return [src[0]!, w.oh, w.ow, c!]
}

/** Calls `tap(wide, weights, narrow)` with the offsets of every triple of channel vectors that a depthwise window joins. */
function eachTap(wide: Shape, weights: Shape, attrs: Attrs, tap: (wideAt: number, wAt: number, narrowAt: number) => void): void {
  const [kh, kw, c] = weights as [number, number, number]
  const { stride, padT, padL, ih, iw, oh, ow } = windowOf(wide, kh, kw, attrs)
  for (let n = 0; n < wide[0]!; n++) {
    for (let y = 0; y < oh; y++) {
      const ky1 = lastTap(y, stride, padT, kh, ih)
      for (let x = 0; x < ow; x++) {
        const kx1 = lastTap(x, stride, padL, kw, iw)
        for (let ky = firstTap(y, stride, padT); ky < ky1; ky++) {
          for (let kx = firstTap(x, stride, padL); kx < kx1; kx++) {
            const wideAt = ((n * ih + y * stride - padT + ky) * iw + x * stride - padL + kx) * c
            tap(wideAt, (ky * kw + kx) * c, ((n * oh + y) * ow + x) * c)
          }
        }
      }
    }
  }
}

export function depthwiseReference(src: RefTensor, weights: RefTensor, attrs: Attrs): RefTensor {
  const dst = refTensor(depthwiseShape(src.shape, weights.shape, attrs))
  const [s, w, d, c] = [src.data, weights.data, dst.data, weights.shape[2]!]
  eachTap(src.shape, weights.shape, attrs, (sAt, wAt, dAt) => {
    for (let i = 0; i < c; i++) d[dAt + i]! += s[sAt + i]! * w[wAt + i]!
  })
  return dst
}

export function depthwiseBwdDataReference(diffDst: RefTensor, weights: RefTensor, attrs: Attrs, srcShape: Shape): RefTensor {
  const diffSrc = refTensor(srcShape)
  const [g, w, d, c] = [diffDst.data, weights.data, diffSrc.data, weights.shape[2]!]
  eachTap(srcShape, weights.shape, attrs, (dAt, wAt, gAt) => {
    for (let i = 0; i < c; i++) d[dAt + i]! += g[gAt + i]! * w[wAt + i]!
  })
  return diffSrc
}

export function depthwiseBwdWeightsReference(src: RefTensor, diffDst: RefTensor, attrs: Attrs, weightsShape: Shape): RefTensor {
  const diffWeights = refTensor(weightsShape)
  const [s, g, d, c] = [src.data, diffDst.data, diffWeights.data, weightsShape[2]!]
  eachTap(src.shape, weightsShape, attrs, (sAt, dAt, gAt) => {
    for (let i = 0; i < c; i++) d[dAt + i]! += s[sAt + i]! * g[gAt + i]!
  })
  return diffWeights
}

export const depthwiseFlops = (dst: Shape, weights: Shape): number => 2 * elements(dst) * weights[0]! * weights[1]!

export const depthwiseConv2d: OpDef = {
  name: 'depthwise_conv2d',
  infer(inputs, attrs) {
    const [src, weights] = [at(inputs, 0), at(inputs, 1)]
    expectImages('src', src)
    expectType('weights', weights, 'f32')
    return [spec(depthwiseShape(src.shape, weights.shape, attrs), src.dtype)]
  },
  grad(ctx) {
    const [src, weights] = [at(ctx.node.inputs, 0), at(ctx.node.inputs, 1)]
    const diffDst = at(ctx.diffOutputs, 0)
    const attrs = convAttrs(ctx.node.attrs)
    // Weights first: the saved src is then free before diff_src is allocated.
    const diffWeights = ctx.wants(1)
      ? ctx.emit('depthwise_conv2d_bwd_weights', 'bwd_weights', { src, diff_dst: diffDst }, attrs, {
          shapes: [weights.shape],
          into: { diff_weights: ctx.target(1) },
        })['diff_weights']!
      : null
    const diffSrc = ctx.wants(0)
      ? ctx.emit('depthwise_conv2d_bwd_data', 'bwd_data', { diff_dst: diffDst, weights }, attrs, { shapes: [src.shape] })[
          'diff_src'
        ]!
      : null
    return [diffSrc, diffWeights]
  },
  reference: (inputs, attrs) => [depthwiseReference(at(inputs, 0), at(inputs, 1), attrs)],
  flops: (node) => depthwiseFlops(at(node.outputs, 0).shape, at(node.inputs, 1).shape),
}

export const depthwiseConv2dBwdData: OpDef = {
  name: 'depthwise_conv2d_bwd_data',
  infer(inputs, attrs, hints) {
    const [diffDst, weights] = [at(inputs, 0), at(inputs, 1)]
    expectImages('diff_dst', diffDst)
    expectType('weights', weights, 'f32')
    const src = hintedShape(hints, 'diff_src')
    const dst = depthwiseShape(src, weights.shape, attrs)
    if (dst.join() !== diffDst.shape.join())
      fail(`diff_dst ${show(diffDst)} is not [${dst.join(', ')}], which diff_src [${src.join(', ')}] needs`)
    return [spec(src, diffDst.dtype)]
  },
  reference: (inputs, attrs, outputs) => [depthwiseBwdDataReference(at(inputs, 0), at(inputs, 1), attrs, at(outputs, 0).shape)],
  flops: (node) => depthwiseFlops(at(node.inputs, 0).shape, at(node.inputs, 1).shape),
}

export const depthwiseConv2dBwdWeights: OpDef = {
  name: 'depthwise_conv2d_bwd_weights',
  infer(inputs, attrs, hints) {
    const [src, diffDst] = [at(inputs, 0), at(inputs, 1)]
    expectImages('src', src)
    expectType('diff_dst', diffDst, src.dtype)
    const weights = hintedShape(hints, 'diff_weights')
    const dst = depthwiseShape(src.shape, weights, attrs)
    if (dst.join() !== diffDst.shape.join())
      fail(`diff_dst ${show(diffDst)} is not [${dst.join(', ')}], which src ${show(src)} needs`)
    return [spec(weights, 'f32')]
  },
  reference: (inputs, attrs, outputs) => [
    depthwiseBwdWeightsReference(at(inputs, 0), at(inputs, 1), attrs, at(outputs, 0).shape),
  ],
  flops: (node) => depthwiseFlops(at(node.inputs, 1).shape, at(node.outputs, 0).shape),
}

/**
 * From this width of dst on both gradients are made in one pass: diff_dst does not stay in the caches from one pass to the next
 * there. Narrower images do, and the two passes are each cut as suits them.
 */
const ONE_PASS_WIDTH = 40

/** With statistics of dst: depthwise_conv2d and bn_stats in one. Statistics are of the stored values. */
export const depthwiseConv2dStats: OpDef = {
  name: 'depthwise_conv2d_stats',
  infer(inputs, attrs, hints) {
    const [src, weights] = [at(inputs, 0), at(inputs, 1)]
    expectImages('src', src)
    expectType('weights', weights, 'f32')
    const dst = depthwiseShape(src.shape, weights.shape, attrs)
    const channels = [dst[3]!]
    expectRunning(channels, hints)
    return [spec(dst, src.dtype), spec(channels, 'f32'), spec(channels, 'f32')]
  },
  // The part of the statistics is in the gradient of what they normalise, as with bn_stats.
  grad(ctx) {
    const [src, weights] = [at(ctx.node.inputs, 0), at(ctx.node.inputs, 1)]
    const inOnePass = at(ctx.node.outputs, 0).shape[2]! >= ONE_PASS_WIDTH
    if (!inOnePass || !ctx.wants(0) || !ctx.wants(1)) return depthwiseConv2d.grad!(ctx)
    const diff_dst = at(ctx.diffOutputs, 0)
    const { diff_src, diff_weights } = ctx.emit(
      'depthwise_conv2d_bwd',
      'bwd',
      { src, diff_dst, weights },
      convAttrs(ctx.node.attrs),
      {
        into: { diff_weights: ctx.target(1) },
      },
    )
    return [diff_src!, diff_weights!]
  },
  reference(inputs, attrs, outputs, ctx) {
    const exact = depthwiseReference(at(inputs, 0), at(inputs, 1), attrs)
    const dst = ctx.round(exact, at(outputs, 0).dtype)
    return [dst, ...bnStatsReference(dst, attrs, ctx)]
  },
  flops: (node) => depthwiseFlops(at(node.outputs, 0).shape, at(node.inputs, 1).shape),
}

/** Both gradients, diff_dst read once. */
export const depthwiseConv2dBwd: OpDef = {
  name: 'depthwise_conv2d_bwd',
  infer(inputs, attrs) {
    const [src, diffDst, weights] = [at(inputs, 0), at(inputs, 1), at(inputs, 2)]
    expectImages('src', src)
    expectType('weights', weights, 'f32')
    expectType('diff_dst', diffDst, src.dtype)
    const dst = depthwiseShape(src.shape, weights.shape, attrs)
    if (dst.join() !== diffDst.shape.join())
      fail(`diff_dst ${show(diffDst)} is not [${dst.join(', ')}], which src ${show(src)} needs`)
    return [spec(src.shape, src.dtype), spec(weights.shape, 'f32')]
  },
  reference: (inputs, attrs, outputs) => [
    depthwiseBwdDataReference(at(inputs, 1), at(inputs, 2), attrs, at(outputs, 0).shape),
    depthwiseBwdWeightsReference(at(inputs, 0), at(inputs, 1), attrs, at(outputs, 1).shape),
  ],
  flops: (node) => 2 * depthwiseFlops(at(node.inputs, 1).shape, at(node.inputs, 2).shape),
}
