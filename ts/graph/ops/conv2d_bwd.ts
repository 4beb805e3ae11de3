/**
 * Both gradients of a 1x1 convolution whose result `dst` is normalised: bn_act_bwd_apply, then conv2d_bwd_data and
 * conv2d_bwd_weights of what it makes, which is never stored. `diff_dst` is the gradient of the normalised and activated value.
 *
 * Given the operands of a BN with batch statistics of src, the convolution was of src_act(bn(src)), times gate [N, I] where there
 * is one, and what that needs of diff_src is made in passing:
 * - without a gate, diff_src is the gradient of bn(src); src_diff_scale and src_diff_shift are its sums, as of bn_bwd_reduce
 * - with a gate, diff_src is the gradient of the gated value; diff_gate and sums are as of bn_act_bwd_sums
 *
 * Or src is stored and ends a block: residual? + drop(bn(end_src)). Then diff_src is, rounded once, the whole gradient of src, the
 * convolution's plus addend, and src_diff_scale and src_diff_shift are the sums that the BN needs of it, as of bn_act_bwd_reduce.
 */
import { activationBwdReference } from './activation.js'
import { addReference } from './add.js'
import { bnApplyReference, bnBwdReduceReference, expectNorm, expectSums, normOf } from './batch_norm.js'
import { bnActBwdApplied, bnActBwdSums } from './bn_act.js'
import { at, attr, expectImages, expectPerSample, expectRate, expectSame, expectType, fail, show, spec } from './check.js'
import { conv2dBwdDataReference, conv2dBwdWeightsReference, conv2dFlops, conv2dShape } from './conv2d.js'
import type { Attrs, Inputs, OpDef, RefContext, RefTensor } from './def.js'
import { dropPathReference } from './drop.js'
import { expectSourceNorm, sourceReference } from './source_norm.js'

const GATE = 10
const SRC_NORM = 11
const ADDEND = 15
const END = 16

const endDrop = (attrs: Attrs): Attrs => ({ drop_rate: attr(attrs, 'end_drop_rate'), rng_stream: attr(attrs, 'end_rng_stream') })

/** The addend, and what the BN in front of src needs; whether that is there. */
function expectEnd(inputs: Inputs, attrs: Attrs, normalised: boolean): boolean {
  const src = at(inputs, 0)
  const [addend, ...end] = [ADDEND, END, END + 1, END + 2].map((i) => inputs[i])
  const count = end.filter(Boolean).length
  if (normalised && (addend || count > 0)) fail('a source that is normalised ends no block')
  if (count !== 0 && count !== 3) fail('end_src, end_mean and end_inv_std must be given together')
  if (addend) expectSame('addend', addend, 'src', src)
  expectRate(endDrop(attrs))
  if (count === 0) {
    if (attr(attrs, 'end_drop_rate') !== 0) fail('end_drop_rate needs the BN in front of src')
    return false
  }
  expectSame('end_src', at(inputs, END), 'src', src)
  expectNorm(src, inputs, END + 1, ['end_mean', 'end_inv_std'])
  return true
}

/** [diff_src, src_diff_scale, src_diff_shift] of a stored source, from the convolution's gradient of it. */
function endReference(
  diffSrc: RefTensor,
  inputs: readonly (RefTensor | null)[],
  attrs: Attrs,
  ctx: RefContext,
): (RefTensor | null)[] {
  const whole = inputs[ADDEND] ? addReference(diffSrc, inputs[ADDEND]) : diffSrc
  if (!inputs[END]) return [whole, null, null]
  const stored = ctx.round(whole, at(ctx.node.inputs, 0).dtype)
  const diff = dropPathReference(stored, endDrop(attrs), ctx.scalars)
  const { diffScale, diffShift } = bnBwdReduceReference(diff, inputs[END], at(inputs, END + 1), at(inputs, END + 2))
  return [stored, diffScale, diffShift]
}

export const conv2dBwd: OpDef = {
  name: 'conv2d_bwd',
  infer(inputs, attrs) {
    const [src, weights, dst] = [at(inputs, 0), at(inputs, 1), at(inputs, 3)]
    expectImages('src', src)
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
    const gate = inputs[GATE]
    expectPerSample('gate', gate, 'src', src)
    const normalised = expectSourceNorm(inputs, attrs, SRC_NORM)
    if (gate && !normalised) fail('a gate needs the BN of src')
    const [n, , , c] = src.shape as [number, number, number, number]
    const end = expectEnd(inputs, attrs, normalised)
    const sums = end || (normalised && !gate) ? spec([c], 'f32') : null
    const byImage = gate ? [spec([n, c], 'f32'), spec([n, 4, c], 'f32')] : [null, null]
    return [spec(src.shape, src.dtype), spec(weights.shape, 'f32'), sums, sums, ...byImage]
  },
  reference(inputs, attrs, outputs, ctx) {
    const [src, weights, diffDst] = [at(inputs, 0), ctx.operand(at(inputs, 1)), at(inputs, 2)]
    const dtype = at(outputs, 0).dtype
    const dy = ctx.operand(bnActBwdApplied(diffDst, [...inputs.slice(3, GATE), null, null], attrs, ctx))
    const gate = inputs[GATE]
    const convolved = ctx.operand(sourceReference(inputs, attrs, SRC_NORM, ctx, gate))
    const diffWeights = conv2dBwdWeightsReference(convolved, dy, attrs, at(outputs, 1).shape)
    const diffSrc = conv2dBwdDataReference(dy, weights, attrs, at(outputs, 0).shape)
    if (!inputs[SRC_NORM]) {
      const [stored, diffScale, diffShift] = endReference(diffSrc, inputs, attrs, ctx)
      return [stored!, diffWeights, diffScale!, diffShift!, null, null]
    }
    const act = attr(attrs, 'src_act')
    if (gate) {
      const stored = ctx.round(diffSrc, dtype)
      const operands = [stored, src, ...inputs.slice(SRC_NORM, SRC_NORM + 4), gate]
      const [diffGate, sums] = bnActBwdSums.reference(operands, { act, drop_rate: 0, rng_stream: 0 }, [], ctx)
      return [stored, diffWeights, null, null, diffGate!, sums!]
    }
    const norm = normOf(inputs, SRC_NORM)
    const stored = ctx.round(activationBwdReference(diffSrc, bnApplyReference(src, norm), act), dtype)
    const { diffScale, diffShift } = bnBwdReduceReference(stored, src, norm.mean, norm.invStd)
    return [stored, diffWeights, diffScale, diffShift, null, null]
  },
  flops: (node) => 2 * conv2dFlops(at(node.inputs, 3).shape, at(node.inputs, 1).shape),
}
