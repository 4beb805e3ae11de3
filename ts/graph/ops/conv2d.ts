/** Dense convolution: src [N, H, W, I], weights OHWI [O, kh, kw, I], dst [N, H', W', O]. */
import type { Node, Shape } from '../types.js'
import { at, expectImages, expectType, fail, hintedShape, refTensor, show, spec } from './check.js'
import { convAttrs, firstTap, lastTap, windowOf } from './conv_geometry.js'
import type { Attrs, OpDef, OutputSpec, RefTensor } from './def.js'

/** Shape of dst; throws where src and weights do not fit. */
export function conv2dShape(src: Shape, weights: Shape, attrs: Attrs): Shape {
  const [o, kh, kw, i] = weights
  if (weights.length !== 4 || src.length !== 4 || src[3] !== i) {
    fail(`src [${src.join(', ')}] and weights [${weights.join(', ')}] (OHWI) do not fit`)
  }
  const w = windowOf(src, kh!, kw!, attrs)
  return [src[0]!, w.oh, w.ow, o!]
}

export function conv2dReference(src: RefTensor, weights: RefTensor, attrs: Attrs): RefTensor {
  const dst = refTensor(conv2dShape(src.shape, weights.shape, attrs))
  const [oc, kh, kw, ic] = weights.shape as [number, number, number, number]
  const { stride, padT, padL, ih, iw, oh, ow } = windowOf(src.shape, kh, kw, attrs)
  const [s, w, d] = [src.data, weights.data, dst.data]
  const wStep = kh * kw * ic
  for (let n = 0; n < src.shape[0]!; n++) {
    for (let y = 0; y < oh; y++) {
      const ky1 = lastTap(y, stride, padT, kh, ih)
      for (let x = 0; x < ow; x++) {
        const kx1 = lastTap(x, stride, padL, kw, iw)
        const dAt = ((n * oh + y) * ow + x) * oc
        for (let ky = firstTap(y, stride, padT); ky < ky1; ky++) {
          for (let kx = firstTap(x, stride, padL); kx < kx1; kx++) {
            const sAt = ((n * ih + y * stride - padT + ky) * iw + x * stride - padL + kx) * ic
            dots(d, dAt, oc, s, sAt, w, (ky * kw + kx) * ic, wStep, ic)
          }
        }
      }
    }
  }
  return dst
}

/** d[o] += sum_i s[i] * w[o][i], four outputs at a time so that one load of s serves four sums. */
function dots(
  d: Float64Array,
  dAt: number,
  count: number,
  s: Float64Array,
  sAt: number,
  w: Float64Array,
  wAt: number,
  wStep: number,
  ic: number,
): void {
  let o = 0
  for (; o + 4 <= count; o += 4) {
    const w0 = wAt + o * wStep
    const w1 = w0 + wStep
    const w2 = w1 + wStep
    const w3 = w2 + wStep
    let a0 = 0
    let a1 = 0
    let a2 = 0
    let a3 = 0
    for (let i = 0; i < ic; i++) {
      const v = s[sAt + i]!
      a0 += v * w[w0 + i]!
      a1 += v * w[w1 + i]!
      a2 += v * w[w2 + i]!
      a3 += v * w[w3 + i]!
    }
    d[dAt + o]! += a0
    d[dAt + o + 1]! += a1
    d[dAt + o + 2]! += a2
    d[dAt + o + 3]! += a3
  }
  for (; o < count; o++) {
    let a = 0
    for (let i = 0; i < ic; i++) a += s[sAt + i]! * w[wAt + o * wStep + i]!
    d[dAt + o]! += a
  }
}

export function conv2dBwdDataReference(diffDst: RefTensor, weights: RefTensor, attrs: Attrs, srcShape: Shape): RefTensor {
  const diffSrc = refTensor(srcShape)
  const [oc, kh, kw, ic] = weights.shape as [number, number, number, number]
  const { stride, padT, padL, ih, iw, oh, ow } = windowOf(srcShape, kh, kw, attrs)
  const [g, w, d] = [diffDst.data, weights.data, diffSrc.data]
  const wStep = kh * kw * ic
  for (let n = 0; n < srcShape[0]!; n++) {
    for (let y = 0; y < oh; y++) {
      const ky1 = lastTap(y, stride, padT, kh, ih)
      for (let x = 0; x < ow; x++) {
        const kx1 = lastTap(x, stride, padL, kw, iw)
        const gAt = ((n * oh + y) * ow + x) * oc
        for (let ky = firstTap(y, stride, padT); ky < ky1; ky++) {
          for (let kx = firstTap(x, stride, padL); kx < kx1; kx++) {
            const dAt = ((n * ih + y * stride - padT + ky) * iw + x * stride - padL + kx) * ic
            scatter(d, dAt, ic, g, gAt, oc, w, (ky * kw + kx) * ic, wStep)
          }
        }
      }
    }
  }
  return diffSrc
}

/** d[i] += sum_o g[o] * w[o][i], four rows at a time so that d is loaded and stored once for four. */
function scatter(
  d: Float64Array,
  dAt: number,
  ic: number,
  g: Float64Array,
  gAt: number,
  oc: number,
  w: Float64Array,
  wAt: number,
  wStep: number,
): void {
  let o = 0
  for (; o + 4 <= oc; o += 4) {
    const g0 = g[gAt + o]!
    const g1 = g[gAt + o + 1]!
    const g2 = g[gAt + o + 2]!
    const g3 = g[gAt + o + 3]!
    const w0 = wAt + o * wStep
    const w1 = w0 + wStep
    const w2 = w1 + wStep
    const w3 = w2 + wStep
    for (let i = 0; i < ic; i++) d[dAt + i]! += g0 * w[w0 + i]! + g1 * w[w1 + i]! + g2 * w[w2 + i]! + g3 * w[w3 + i]!
  }
  for (; o < oc; o++) {
    const g0 = g[gAt + o]!
    const w0 = wAt + o * wStep
    for (let i = 0; i < ic; i++) d[dAt + i]! += g0 * w[w0 + i]!
  }
}

export function conv2dBwdWeightsReference(src: RefTensor, diffDst: RefTensor, attrs: Attrs, weightsShape: Shape): RefTensor {
  const diffWeights = refTensor(weightsShape)
  const [oc, kh, kw, ic] = weightsShape as [number, number, number, number]
  const { stride, padT, padL, ih, iw, oh, ow } = windowOf(src.shape, kh, kw, attrs)
  const [s, g, d] = [src.data, diffDst.data, diffWeights.data]
  for (let n = 0; n < src.shape[0]!; n++) {
    for (let y = 0; y < oh; y++) {
      const ky1 = lastTap(y, stride, padT, kh, ih)
      for (let x = 0; x < ow; x++) {
        const kx1 = lastTap(x, stride, padL, kw, iw)
        const gAt = ((n * oh + y) * ow + x) * oc
        for (let ky = firstTap(y, stride, padT); ky < ky1; ky++) {
          for (let kx = firstTap(x, stride, padL); kx < kx1; kx++) {
            const sAt = ((n * ih + y * stride - padT + ky) * iw + x * stride - padL + kx) * ic
            for (let o = 0; o < oc; o++) {
              const v = g[gAt + o]!
              const dAt = ((o * kh + ky) * kw + kx) * ic
              for (let i = 0; i < ic; i++) d[dAt + i]! += v * s[sAt + i]!
            }
          }
        }
      }
    }
  }
  return diffWeights
}

/** Of forward and both backward passes; `images` and `weights` name any tensors of dst's and the weights' shape. */
export function conv2dFlops(dst: Shape, weights: Shape): number {
  return 2 * dst.reduce((a, b) => a * b, 1) * weights.slice(1).reduce((a, b) => a * b, 1)
}

const outShape = (outputs: readonly (OutputSpec | null)[]): Shape => at(outputs, 0).shape
const shapeOf = (list: Node['inputs'], i: number): Shape => at(list, i).shape

export const conv2d: OpDef = {
  name: 'conv2d',
  infer(inputs, attrs) {
    const [src, weights] = [at(inputs, 0), at(inputs, 1)]
    expectImages('src', src)
    expectType('weights', weights, 'f32')
    return [spec(conv2dShape(src.shape, weights.shape, attrs), src.dtype)]
  },
  grad(ctx) {
    const [src, weights] = [at(ctx.node.inputs, 0), at(ctx.node.inputs, 1)]
    const diffDst = at(ctx.diffOutputs, 0)
    const attrs = convAttrs(ctx.node.attrs)
    // Weights first: the saved src is then free before diff_src is allocated.
    const diffWeights = ctx.wants(1)
      ? ctx.emit('conv2d_bwd_weights', 'bwd_weights', { src, diff_dst: diffDst }, attrs, {
          shapes: [weights.shape],
          into: { diff_weights: ctx.target(1) },
        })['diff_weights']!
      : null
    const diffSrc = ctx.wants(0)
      ? ctx.emit('conv2d_bwd_data', 'bwd_data', { diff_dst: diffDst, weights }, attrs, { shapes: [src.shape] })['diff_src']!
      : null
    return [diffSrc, diffWeights]
  },
  reference: (inputs, attrs, _, ctx) => [conv2dReference(ctx.operand(at(inputs, 0)), ctx.operand(at(inputs, 1)), attrs)],
  flops: (node) => conv2dFlops(shapeOf(node.outputs, 0), shapeOf(node.inputs, 1)),
}

export const conv2dBwdData: OpDef = {
  name: 'conv2d_bwd_data',
  infer(inputs, attrs, hints) {
    const [diffDst, weights] = [at(inputs, 0), at(inputs, 1)]
    expectImages('diff_dst', diffDst)
    expectType('weights', weights, 'f32')
    const src = hintedShape(hints, 'diff_src')
    const dst = conv2dShape(src, weights.shape, attrs)
    if (dst.join() !== diffDst.shape.join())
      fail(`diff_dst ${show(diffDst)} is not [${dst.join(', ')}], which diff_src [${src.join(', ')}] needs`)
    return [spec(src, diffDst.dtype)]
  },
  reference: (inputs, attrs, outputs, ctx) => [
    conv2dBwdDataReference(ctx.operand(at(inputs, 0)), ctx.operand(at(inputs, 1)), attrs, outShape(outputs)),
  ],
  flops: (node) => conv2dFlops(shapeOf(node.inputs, 0), shapeOf(node.inputs, 1)),
}

export const conv2dBwdWeights: OpDef = {
  name: 'conv2d_bwd_weights',
  infer(inputs, attrs, hints) {
    const [src, diffDst] = [at(inputs, 0), at(inputs, 1)]
    expectImages('src', src)
    expectType('diff_dst', diffDst, src.dtype)
    const weights = hintedShape(hints, 'diff_weights')
    const dst = conv2dShape(src.shape, weights, attrs)
    if (dst.join() !== diffDst.shape.join())
      fail(`diff_dst ${show(diffDst)} is not [${dst.join(', ')}], which src ${show(src)} needs`)
    return [spec(weights, 'f32')]
  },
  reference: (inputs, attrs, outputs, ctx) => [
    conv2dBwdWeightsReference(ctx.operand(at(inputs, 0)), ctx.operand(at(inputs, 1)), attrs, outShape(outputs)),
  ],
  flops: (node) => conv2dFlops(shapeOf(node.inputs, 1), shapeOf(node.outputs, 0)),
}
