/** Depthwise convolution: src [N, H, W, C], weights HWC [kh, kw, C], dst [N, H', W', C]. */
import { actCode, elements, type Shape, type Tensor } from '../types.js'
import { activationBwdReference } from './activation.js'
import { bnApplyReference, bnBwdReduceReference, bnStatsReference, expectRunning, expectSums, normOf } from './batch_norm.js'
import { bnActBwdApplied } from './bn_act.js'
import {
  at,
  attr,
  expectAct,
  expectChannels,
  expectImages,
  expectPerSample,
  expectSame,
  expectType,
  fail,
  hintedShape,
  refTensor,
  show,
  spec,
} from './check.js'
import { convAttrs, firstTap, lastTap, windowOf } from './conv_geometry.js'
import type { Attrs, GradContext, Inputs, OpDef, RefTensor } from './def.js'
import { expectSourceNorm, sourceReference } from './source_norm.js'

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

function depthwiseBwdDataReference(diffDst: RefTensor, weights: RefTensor, attrs: Attrs, srcShape: Shape): RefTensor {
  const diffSrc = refTensor(srcShape)
  const [g, w, d, c] = [diffDst.data, weights.data, diffSrc.data, weights.shape[2]!]
  eachTap(srcShape, weights.shape, attrs, (dAt, wAt, gAt) => {
    for (let i = 0; i < c; i++) d[dAt + i]! += g[gAt + i]! * w[wAt + i]!
  })
  return diffSrc
}

function depthwiseBwdWeightsReference(src: RefTensor, diffDst: RefTensor, attrs: Attrs, weightsShape: Shape): RefTensor {
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
 * With statistics of dst: depthwise_conv2d and bn_stats in one. Statistics are of the stored values. Given the operands of a BN
 * with batch statistics of src, it convolves src_act(bn(src)), which is never stored: bn_act, too, in one.
 */
export const depthwiseConv2dStats: OpDef = {
  name: 'depthwise_conv2d_stats',
  infer(inputs, attrs, hints) {
    const [src, weights] = [at(inputs, 0), at(inputs, 1)]
    expectImages('src', src)
    expectType('weights', weights, 'f32')
    expectSourceNorm(inputs, attrs, 2)
    const dst = depthwiseShape(src.shape, weights.shape, attrs)
    const channels = [dst[3]!]
    expectRunning(channels, hints)
    return [spec(dst, src.dtype), spec(channels, 'f32'), spec(channels, 'f32')]
  },
  // The part of the statistics is in the gradient of what they normalise, as with bn_stats.
  grad(ctx) {
    const { inputs, attrs } = ctx.node
    if (inputs[2]) return normalisedGrad(ctx)
    if (!ctx.wants(0) || !ctx.wants(1)) return depthwiseConv2d.grad!(ctx)
    const operands = { src: inputs[0], diff_dst: at(ctx.diffOutputs, 0), weights: inputs[1] }
    const into = { diff_weights: ctx.target(1) }
    const made = ctx.emit('depthwise_conv2d_bwd', 'bwd', operands, bwdAttrs(attrs), { into })
    return [made['diff_src']!, made['diff_weights']!]
  },
  reference(inputs, attrs, outputs, ctx) {
    const exact = depthwiseReference(sourceReference(inputs, attrs, 2, ctx), at(inputs, 1), attrs)
    const dst = ctx.round(exact, at(outputs, 0).dtype)
    return [dst, ...bnStatsReference(dst, attrs, ctx)]
  },
  flops: (node) => depthwiseFlops(at(node.outputs, 0).shape, at(node.inputs, 1).shape),
}

const bwdAttrs = (attrs: Attrs): Attrs => ({
  ...convAttrs(attrs),
  src_act: attr(attrs, 'src_act'),
  act: actCode('identity'),
})

/** The activated source is made again in passing; what is left of the BN's gradient is linear. */
function normalisedGrad(ctx: GradContext): (Tensor | null)[] {
  const [src, weights, src_mean, src_inv_std, src_scale, src_shift] = ctx.node.inputs
  const operands = { src, diff_dst: at(ctx.diffOutputs, 0), weights, src_mean, src_inv_std, src_scale, src_shift }
  const made = ctx.emit('depthwise_conv2d_bwd', 'bwd', operands, bwdAttrs(ctx.node.attrs), {
    want: ['src_diff_scale', 'src_diff_shift'],
    into: { diff_weights: ctx.target(1), src_diff_scale: ctx.target(4), src_diff_shift: ctx.target(5) },
  })
  const { diff_src, diff_weights, src_diff_scale, src_diff_shift } = made as Record<string, Tensor>
  const linear = {
    diff_dst: diff_src,
    src,
    mean: src_mean,
    inv_std: src_inv_std,
    scale: src_scale,
    diff_scale: src_diff_scale,
    diff_shift: src_diff_shift,
  }
  const diffSrc = ctx.wants(0) ? ctx.emit('bn_bwd_apply', 'bwd_apply', linear, { batch_stats: 1 })['diff_src']! : null
  return [diffSrc, diff_weights!, null, null, src_diff_scale!, src_diff_shift!]
}

/** Of a BN behind the convolution: all that bn_act_bwd_apply takes, or nothing. Without activation there is no need of the shift. */
function expectDstNorm(inputs: Inputs, attrs: Attrs): void {
  const [dst, mean, invStd, scale, shift, diffScale, diffShift, gate, diffPooled] = inputs.slice(7)
  expectAct(attrs)
  const activated = attr(attrs, 'act') !== actCode('identity')
  if (!dst) {
    if (inputs.slice(8).some(Boolean) || activated) fail('operands of the BN behind the convolution need dst')
    return
  }
  if (!mean || !invStd || !scale || (activated && !shift)) fail('dst needs mean, inv_std, scale and, activated, shift')
  expectSame('dst', dst, 'diff_dst', at(inputs, 1))
  for (const [port, t] of Object.entries({ mean, inv_std: invStd, scale, shift })) expectChannels(port, t, 'dst', dst)
  expectSums({ batch_stats: 1 }, dst, diffScale, diffShift)
  expectPerSample('gate', gate, 'dst', dst)
  expectPerSample('diff_pooled', diffPooled, 'dst', dst)
}

/**
 * Both gradients, src and diff_dst read once. With the operands of a BN, as depthwise_conv2d_stats: diff_src is then the gradient
 * of bn(src), and src_diff_scale and src_diff_shift are its sums, as those of bn_bwd_reduce.
 *
 * With those of the BN behind it (batch statistics, as in bn_act_bwd_apply), diff_dst is the gradient of what follows that BN and
 * bn_act_bwd_apply is done on the way in; only passes behind autodiff ask for it.
 */
export const depthwiseConv2dBwd: OpDef = {
  name: 'depthwise_conv2d_bwd',
  infer(inputs, attrs) {
    const [src, diffDst, weights] = [at(inputs, 0), at(inputs, 1), at(inputs, 2)]
    expectImages('src', src)
    expectType('weights', weights, 'f32')
    expectType('diff_dst', diffDst, src.dtype)
    const normalised = expectSourceNorm(inputs, attrs, 3)
    expectDstNorm(inputs, attrs)
    const dst = depthwiseShape(src.shape, weights.shape, attrs)
    if (dst.join() !== diffDst.shape.join())
      fail(`diff_dst ${show(diffDst)} is not [${dst.join(', ')}], which src ${show(src)} needs`)
    const sums = normalised ? spec([src.shape[3]!], 'f32') : null
    return [spec(src.shape, src.dtype), spec(weights.shape, 'f32'), sums, sums]
  },
  reference(inputs, attrs, outputs, ctx) {
    const [src, weights] = [at(inputs, 0), at(inputs, 2)]
    const behind = { act: attr(attrs, 'act'), drop_rate: 0, rng_stream: 0, batch_stats: 1 }
    const diffDst = inputs[7] ? bnActBwdApplied(at(inputs, 1), inputs.slice(7), behind, ctx) : at(inputs, 1)
    const diff = depthwiseBwdDataReference(diffDst, weights, attrs, at(outputs, 0).shape)
    const convolved = sourceReference(inputs, attrs, 3, ctx)
    const diffWeights = depthwiseBwdWeightsReference(convolved, diffDst, attrs, at(outputs, 1).shape)
    if (!inputs[3]) return [diff, diffWeights, null, null]
    const norm = normOf(inputs, 3)
    const exact = activationBwdReference(diff, bnApplyReference(src, norm), attr(attrs, 'src_act'))
    const diffBn = ctx.round(exact, at(outputs, 0).dtype)
    const { diffScale, diffShift } = bnBwdReduceReference(diffBn, src, norm.mean, norm.invStd)
    return [diffBn, diffWeights, diffScale, diffShift]
  },
  flops: (node) => 2 * depthwiseFlops(at(node.inputs, 1).shape, at(node.inputs, 2).shape),
}
