/**
 * BN + activation, with what follows it in a block: gate, stochastic depth, residual; or global average pooling.
 * dst = residual + drop(act(bn(src)) * gate). The activation is never stored for the backward pass: it is made again from src.
 *
 * Where a block has squeeze-and-excitation, bn_act (gated output) and bn_act_pool (input of the gate) read the same src. Their
 * gradients then meet in one pair of backward ops: bn_act gives diff_gate and hands the rest to bn_act_pool, which by then
 * knows diff_pooled.
 */
import type { Node, Tensor } from '../types.js'
import { activationBwdReference, activationReference } from './activation.js'
import { addReference } from './add.js'
import { bnApplyReference, bnBwdApplyReference, bnBwdReduceReference, expectNorm, expectSums, normOf } from './batch_norm.js'
import { channelScaleBwdGateReference, channelScaleReference } from './channel_scale.js'
import {
  at,
  attr,
  expectAct,
  expectFlag,
  expectImages,
  expectPerSample,
  expectRate,
  expectSame,
  sameAsFirst,
  spec,
} from './check.js'
import type { Attrs, GradContext, OpDef, RefContext, RefTensor } from './def.js'
import { dropPathReference } from './drop.js'
import { globalAvgPoolBwdReference, globalAvgPoolReference } from './global_avg_pool.js'

type Refs = readonly (RefTensor | null)[]

export const bnAct: OpDef = {
  name: 'bn_act',
  infer(inputs, attrs) {
    const src = at(inputs, 0)
    expectImages('src', src)
    expectNorm(src, inputs, 1)
    expectPerSample('gate', inputs[5], 'src', src)
    if (inputs[6]) expectSame('residual', inputs[6], 'src', src)
    expectAct(attrs)
    expectRate(attrs)
    expectFlag(attrs, 'batch_stats')
    return sameAsFirst(inputs)
  },
  grad(ctx) {
    const [src, mean, inv_std, scale, shift, gate, residual] = ctx.node.inputs
    const diffDst = at(ctx.diffOutputs, 0)
    const diffResidual = residual && ctx.wants(6) ? diffDst : null
    let diffGate: Tensor | null = null
    if (gate && ctx.wants(5)) {
      // The gate multiplies before the drop, so the drop's draws apply to its gradient too.
      const drop = { drop_rate: attr(ctx.node.attrs, 'drop_rate'), rng_stream: attr(ctx.node.attrs, 'rng_stream') }
      const diff_dst = drop.drop_rate > 0 ? ctx.emit('drop_path', 'bwd_drop', { src: diffDst }, drop)['dst']! : diffDst
      const operands = { diff_dst, src, mean, inv_std, scale, shift }
      diffGate = ctx.emit('bn_act_bwd_gate', 'bwd_gate', operands, { act: attr(ctx.node.attrs, 'act') })['diff_gate']!
    }
    const twin = gate ? poolTwin(ctx) : undefined
    if (twin && ctx.handTo(twin)) return [null, null, null, null, null, diffGate, diffResidual]
    const diffs = emitBackward(ctx, ctx.node, diffDst, null)
    return [...diffs, diffGate, diffResidual]
  },
  reference(inputs, attrs, _outputs, ctx) {
    const z = activationReference(bnApplyReference(at(inputs, 0), normOf(inputs, 1)), attr(attrs, 'act'))
    const gated = inputs[5] ? channelScaleReference(z, inputs[5]) : z
    const dropped = dropPathReference(gated, attrs, ctx.scalars)
    return [inputs[6] ? addReference(inputs[6], dropped) : dropped]
  },
}

/** The earlier bn_act_pool over the same operands, through which the gate depends on src. */
function poolTwin(ctx: GradContext): Node | undefined {
  const { node } = ctx
  return ctx
    .consumers(at(node.inputs, 0))
    .find(
      (other) =>
        other.op === 'bn_act_pool' &&
        other.id < node.id &&
        other.inputs.every((t, i) => t === node.inputs[i]) &&
        other.attrs['act'] === node.attrs['act'] &&
        other.attrs['batch_stats'] === node.attrs['batch_stats'],
    )
}

/** Gradients of src, mean, inv_std, scale, shift of `forward` (a bn_act or bn_act_pool with ctx.node's first five inputs). */
function emitBackward(ctx: GradContext, forward: Node, diff_dst: Tensor, diff_pooled: Tensor | null): (Tensor | null)[] {
  const [src, mean, inv_std, scale, shift] = ctx.node.inputs
  const gate = forward.op === 'bn_act' ? forward.inputs[5] : null
  const operands = { diff_dst, src, mean, inv_std, scale, shift, gate, diff_pooled }
  const attrs = {
    act: attr(forward.attrs, 'act'),
    drop_rate: forward.attrs['drop_rate'] ?? 0,
    rng_stream: forward.attrs['rng_stream'] ?? 0,
  }
  const batch_stats = attr(forward.attrs, 'batch_stats')
  const sumsWanted = ctx.wants(3) || ctx.wants(4) || (ctx.wants(0) && batch_stats === 1)
  const sums: Partial<Record<string, Tensor>> = sumsWanted
    ? ctx.emit('bn_act_bwd_reduce', 'bwd_reduce', operands, attrs, {
        into: { diff_scale: ctx.target(3), diff_shift: ctx.target(4) },
      })
    : {}
  const corrections = batch_stats === 1 ? { diff_scale: sums['diff_scale'], diff_shift: sums['diff_shift'] } : {}
  const diffSrc = ctx.wants(0)
    ? ctx.emit('bn_act_bwd_apply', 'bwd_apply', { ...operands, ...corrections }, { ...attrs, batch_stats })['diff_src']!
    : null
  return [diffSrc, null, null, sums['diff_scale'] ?? null, sums['diff_shift'] ?? null]
}

/** pooled [N, C] = mean over H and W of act(bn(src)), each value rounded to src's type first. */
export const bnActPool: OpDef = {
  name: 'bn_act_pool',
  infer(inputs, attrs) {
    const src = at(inputs, 0)
    expectImages('src', src)
    expectNorm(src, inputs, 1)
    expectAct(attrs)
    expectFlag(attrs, 'batch_stats')
    return [spec([src.shape[0]!, src.shape[3]!], 'f32')]
  },
  grad(ctx) {
    const src = at(ctx.node.inputs, 0)
    const diffPooled = ctx.diffOutputs[0] ?? null
    if (ctx.handed) return emitBackward(ctx, ctx.handed.node, at(ctx.handed.diffOutputs, 0), diffPooled)
    const options = { shapes: [src.shape], dtype: src.dtype }
    const diffDst = ctx.emit('global_avg_pool_bwd', 'bwd_pool', { diff_dst: diffPooled }, {}, options)['diff_src']!
    return emitBackward(ctx, ctx.node, diffDst, null)
  },
  reference(inputs, attrs, _outputs, ctx) {
    const z = activationReference(bnApplyReference(at(inputs, 0), normOf(inputs, 1)), attr(attrs, 'act'))
    return [globalAvgPoolReference(ctx.round(z, at(ctx.node.inputs, 0).dtype))]
  },
}

function expectBackward(
  inputs: readonly (Tensor | null)[],
  attrs: Attrs,
  gate: Tensor | null | undefined,
  diffPooled: Tensor | null | undefined,
): void {
  const src = at(inputs, 1)
  expectImages('src', src)
  expectSame('diff_dst', at(inputs, 0), 'src', src)
  expectNorm(src, inputs, 2)
  expectPerSample('gate', gate, 'src', src)
  expectPerSample('diff_pooled', diffPooled, 'src', src)
  expectAct(attrs)
}

/** Gradient of bn(src): through drop and gate, plus what comes by way of the pooling, times act'. Inputs 0..5 as in the table. */
function diffOfBn(
  inputs: Refs,
  gate: RefTensor | null | undefined,
  diffPooled: RefTensor | null | undefined,
  attrs: Attrs,
  ctx: RefContext,
): RefTensor {
  const src = at(inputs, 1)
  const dropped = dropPathReference(at(inputs, 0), attrs, ctx.scalars)
  const gated = gate ? channelScaleReference(dropped, gate) : dropped
  const diffZ = diffPooled ? addReference(gated, globalAvgPoolBwdReference(diffPooled, src.shape)) : gated
  return activationBwdReference(diffZ, bnApplyReference(src, normOf(inputs, 2)), attr(attrs, 'act'))
}

export const bnActBwdReduce: OpDef = {
  name: 'bn_act_bwd_reduce',
  infer(inputs, attrs) {
    expectBackward(inputs, attrs, inputs[6], inputs[7])
    expectRate(attrs)
    const shape = [at(inputs, 1).shape[3]!]
    return [spec(shape, 'f32'), spec(shape, 'f32')]
  },
  reference(inputs, attrs, _outputs, ctx) {
    const diff = diffOfBn(inputs, inputs[6], inputs[7], attrs, ctx)
    const { diffScale, diffShift } = bnBwdReduceReference(diff, at(inputs, 1), at(inputs, 2), at(inputs, 3))
    return [diffScale, diffShift]
  },
}

export const bnActBwdApply: OpDef = {
  name: 'bn_act_bwd_apply',
  infer(inputs, attrs) {
    expectBackward(inputs, attrs, inputs[8], inputs[9])
    expectRate(attrs)
    expectSums(attrs, at(inputs, 1), inputs[6], inputs[7])
    return [spec(at(inputs, 1).shape, at(inputs, 1).dtype)]
  },
  reference(inputs, attrs, _outputs, ctx) {
    const diff = diffOfBn(inputs, inputs[8], inputs[9], attrs, ctx)
    const sums = attr(attrs, 'batch_stats') === 1 ? { diffScale: at(inputs, 6), diffShift: at(inputs, 7) } : null
    return [bnBwdApplyReference(diff, at(inputs, 1), normOf(inputs, 2), sums)]
  },
}

export const bnActBwdGate: OpDef = {
  name: 'bn_act_bwd_gate',
  infer(inputs, attrs) {
    expectBackward(inputs, attrs, null, null)
    const src = at(inputs, 1)
    return [spec([src.shape[0]!, src.shape[3]!], 'f32')]
  },
  reference(inputs, attrs) {
    const z = activationReference(bnApplyReference(at(inputs, 1), normOf(inputs, 2)), attr(attrs, 'act'))
    return [channelScaleBwdGateReference(at(inputs, 0), z)]
  },
}
