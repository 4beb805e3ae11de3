/**
 * Convolutions whose source is a normalised tensor, never stored: they read src and the four vectors of its BN with batch
 * statistics, and convolve src_act(bn(src)), for 1x1 ones times a gate [N, C].
 */
import { actCode, type Tensor } from '../types.js'
import { activationReference } from './activation.js'
import { bnApplyReference, expectNorm, normOf } from './batch_norm.js'
import { channelScaleReference } from './channel_scale.js'
import { at, attr, expectAct, fail } from './check.js'
import type { Attrs, Inputs, RefContext, RefTensor } from './def.js'

/** src_mean, src_inv_std, src_scale, src_shift from input `first` on: all of them (then true), or none. */
export function expectSourceNorm(inputs: Inputs, attrs: Attrs, first: number): boolean {
  const operands: readonly (Tensor | null | undefined)[] = inputs.slice(first, first + 4)
  const count = operands.filter(Boolean).length
  if (count !== 0 && count !== 4) fail('src_mean, src_inv_std, src_scale and src_shift must be given together')
  expectAct({ act: attr(attrs, 'src_act') })
  if (count === 0 && attr(attrs, 'src_act') !== actCode('identity')) fail('src_act needs the BN of src')
  if (count === 4) expectNorm(at(inputs, 0), inputs, first, ['src_mean', 'src_inv_std', 'src_scale', 'src_shift'])
  return count === 4
}

/** What the window slides over: src, or src_act(bn(src)), times the gate; rounded once, as it would be stored. */
export function sourceReference(
  inputs: readonly (RefTensor | null)[],
  attrs: Attrs,
  first: number,
  ctx: RefContext,
  gate?: RefTensor | null,
): RefTensor {
  const src = at(inputs, 0)
  if (!inputs[first] && !gate) return src
  const activated = inputs[first]
    ? activationReference(bnApplyReference(src, normOf(inputs, first)), attr(attrs, 'src_act'))
    : src
  return ctx.round(gate ? channelScaleReference(activated, gate) : activated, at(ctx.node.inputs, 0).dtype)
}
