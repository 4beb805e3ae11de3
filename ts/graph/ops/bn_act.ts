/**
 * BN + activation, with what follows it in a block: gate, stochastic depth, residual; or global average pooling.
 * dst = residual + drop(act(bn(src)) * gate). The activation is never stored for the backward pass: it is made again from src.
 *
 * Where a block has squeeze-and-excitation, bn_act (gated output) and bn_act_pool (input of the gate) read the same src. Their
 * gradients then meet: bn_act makes diff_gate, and in the same pass over src and diff_dst the sums by image from which the
 * reductions of the whole gradient follow once diff_pooled is known (they are linear in gate and diff_pooled); it hands the
 * rest to bn_act_pool, which by then knows diff_pooled.
 */
import type { Node, Shape, Tensor } from '../types.js'
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
  fail,
  sameAsFirst,
  show,
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
    if (gate && ctx.wants(5)) {
      const attrs = dropAttrs(ctx.node)
      const operands = { diff_dst: diffDst, src, mean, inv_std, scale, shift, gate }
      if (sumsWanted(ctx, ctx.node)) {
        const made = ctx.emit('bn_act_bwd_sums', 'bwd_sums', operands, attrs)
        const { diff_gate, sums } = made as { diff_gate: Tensor; sums: Tensor }
        const twin = poolTwin(ctx)
        if (twin && ctx.handTo(twin, sums)) return [null, null, null, null, null, diff_gate, diffResidual]
        return [...emitBackward(ctx, ctx.node, diffDst, null, sums), diff_gate, diffResidual]
      }
      // The gate multiplies before the drop, so the drop's draws apply to its gradient too.
      const { act, ...drop } = attrs
      const diff_dst = drop.drop_rate > 0 ? ctx.emit('drop_path', 'bwd_drop', { src: diffDst }, drop)['dst']! : diffDst
      const diffGate = ctx.emit('bn_act_bwd_gate', 'bwd_gate', { diff_dst, src, mean, inv_std, scale, shift }, { act })[
        'diff_gate'
      ]!
      const twin = poolTwin(ctx)
      if (twin && ctx.handTo(twin)) return [null, null, null, null, null, diffGate, diffResidual]
      return [...emitBackward(ctx, ctx.node, diffDst, null), diffGate, diffResidual]
    }
    return [...emitBackward(ctx, ctx.node, diffDst, null), null, diffResidual]
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

const dropAttrs = (node: Node): { act: number; drop_rate: number; rng_stream: number } => ({
  act: attr(node.attrs, 'act'),
  drop_rate: node.attrs['drop_rate'] ?? 0,
  rng_stream: node.attrs['rng_stream'] ?? 0,
})

/** Whether anyone needs the reductions of the backward pass: scale and shift, or src by way of the batch's statistics. */
const sumsWanted = (ctx: GradContext, forward: Node): boolean =>
  ctx.wants(3) || ctx.wants(4) || (ctx.wants(0) && attr(forward.attrs, 'batch_stats') === 1)

/**
 * Gradients of src, mean, inv_std, scale, shift of `forward` (a bn_act or bn_act_pool with ctx.node's first five inputs). `sums`
 * are those of bn_act_bwd_sums, where it has been over src and diff_dst already.
 */
function emitBackward(
  ctx: GradContext,
  forward: Node,
  diff_dst: Tensor,
  diff_pooled: Tensor | null,
  sums?: Tensor | undefined,
): (Tensor | null)[] {
  const [src, mean, inv_std, scale, shift] = ctx.node.inputs
  const gate = forward.op === 'bn_act' ? forward.inputs[5] : null
  const operands = { diff_dst, src, mean, inv_std, scale, shift, gate, diff_pooled }
  const attrs = dropAttrs(forward)
  const batch_stats = attr(forward.attrs, 'batch_stats')
  const into = { diff_scale: ctx.target(3), diff_shift: ctx.target(4) }
  let reduced: Partial<Record<string, Tensor>> = {}
  if (sums) {
    const pixels = at(ctx.node.inputs, 0).shape[1]! * at(ctx.node.inputs, 0).shape[2]!
    reduced = ctx.emit('bn_act_bwd_merge', 'bwd_merge', { sums, gate, diff_pooled }, { pixels }, { into })
  } else if (sumsWanted(ctx, forward)) {
    reduced = ctx.emit('bn_act_bwd_reduce', 'bwd_reduce', operands, attrs, { into })
  }
  const corrections = batch_stats === 1 ? { diff_scale: reduced['diff_scale'], diff_shift: reduced['diff_shift'] } : {}
  const diffSrc = ctx.wants(0)
    ? ctx.emit('bn_act_bwd_apply', 'bwd_apply', { ...operands, ...corrections }, { ...attrs, batch_stats })['diff_src']!
    : null
  return [diffSrc, null, null, reduced['diff_scale'] ?? null, reduced['diff_shift'] ?? null]
}

/**
 * pooled [N, C] = mean over H and W of act(bn(src)), each value rounded to src's type first. `dst`, where wanted, is act(bn(src))
 * itself; only passes behind autodiff ask for it, so that nobody sends a gradient to it.
 */
export const bnActPool: OpDef = {
  name: 'bn_act_pool',
  infer(inputs, attrs) {
    const src = at(inputs, 0)
    expectImages('src', src)
    expectNorm(src, inputs, 1)
    expectAct(attrs)
    expectFlag(attrs, 'batch_stats')
    return [spec([src.shape[0]!, src.shape[3]!], 'f32'), spec(src.shape, src.dtype)]
  },
  grad(ctx) {
    const src = at(ctx.node.inputs, 0)
    const diffPooled = ctx.diffOutputs[0] ?? null
    if (ctx.handed) return emitBackward(ctx, ctx.handed.node, at(ctx.handed.diffOutputs, 0), diffPooled, ctx.handed.made)
    const options = { shapes: [src.shape], dtype: src.dtype }
    const diffDst = ctx.emit('global_avg_pool_bwd', 'bwd_pool', { diff_dst: diffPooled }, {}, options)['diff_src']!
    return emitBackward(ctx, ctx.node, diffDst, null)
  },
  reference(inputs, attrs, outputs, ctx) {
    const z = activationReference(bnApplyReference(at(inputs, 0), normOf(inputs, 1)), attr(attrs, 'act'))
    const stored = ctx.round(z, at(ctx.node.inputs, 0).dtype)
    return [globalAvgPoolReference(stored), outputs[1] ? stored : null]
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

/**
 * What bn_act_bwd_apply makes of diff_dst, as it would be stored: for ops that do it on the way in. `operands` as its inputs from
 * src on; without an activation the shift may be missing.
 */
export function bnActBwdApplied(diffDst: RefTensor, operands: Refs, attrs: Attrs, ctx: RefContext): RefTensor {
  const [src, mean, invStd, scale, shift, ...more] = operands
  const norm = [src!, mean!, invStd!, scale!, shift ?? filled(mean!.shape, 0)]
  const [diff] = bnActBwdApply.reference([diffDst, ...norm, ...more], attrs, [], ctx)
  return ctx.round(diff!, at(ctx.node.inputs, 0).dtype)
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

/**
 * One pass for all that needs diff_dst before diff_pooled is known. With d = drop(diff_dst), z = bn(src), per image and channel:
 * diff_gate = sum(d * act(z)); sums [N,4,C] = sum(d * act'(z)), sum(act'(z)), sum(d * act'(z) * xhat), sum(act'(z) * xhat).
 * `dst`, where wanted, is the gated activation drop(act(z) * gate) again.
 */
export const bnActBwdSums: OpDef = {
  name: 'bn_act_bwd_sums',
  infer(inputs, attrs) {
    expectBackward(inputs, attrs, inputs[6], null)
    expectRate(attrs)
    const src = at(inputs, 1)
    const [n, , , c] = src.shape as [number, number, number, number]
    return [spec([n, c], 'f32'), spec([n, 4, c], 'f32'), inputs[6] ? spec(src.shape, src.dtype) : null]
  },
  reference(inputs, attrs, outputs, ctx) {
    const src = at(inputs, 1)
    const z = bnApplyReference(src, normOf(inputs, 2))
    const value = activationReference(z, attr(attrs, 'act'))
    const d = dropPathReference(at(inputs, 0), attrs, ctx.scalars)
    const slope = activationBwdReference(filled(src.shape, 1), z, attr(attrs, 'act'))
    const [mean, invStd] = [at(inputs, 2), at(inputs, 3)]
    const xhat = bnApplyReference(src, { mean, invStd, scale: filled(mean.shape, 1), shift: filled(mean.shape, 0) })
    const perImage = channelScaleBwdGateReference
    const parts = [
      perImage(d, slope),
      perImage(slope, filled(src.shape, 1)),
      perImage(times(d, slope), xhat),
      perImage(slope, xhat),
    ]
    const [n, c] = parts[0]!.shape as [number, number]
    const sums = { shape: [n, 4, c], data: new Float64Array(4 * n * c) }
    parts.forEach((part, i) => {
      for (let k = 0; k < n; k++) sums.data.set(part.data.subarray(k * c, (k + 1) * c), (4 * k + i) * c)
    })
    const dst = outputs[2] ? dropPathReference(channelScaleReference(value, at(inputs, 6)), attrs, ctx.scalars) : null
    return [perImage(d, value), sums, dst]
  },
}

const filled = (shape: Shape, value: number): RefTensor => ({
  shape,
  data: new Float64Array(shape.reduce((a, b) => a * b, 1)).fill(value),
})
const times = (a: RefTensor, b: RefTensor): RefTensor => ({ shape: a.shape, data: a.data.map((x, i) => x * b.data[i]!) })

/** The sums of bn_act_bwd_reduce from those of bn_act_bwd_sums: linear in gate and diff_pooled. `pixels` = H*W. */
export const bnActBwdMerge: OpDef = {
  name: 'bn_act_bwd_merge',
  infer(inputs, attrs) {
    const gate = at(inputs, 1)
    const [n, c] = gate.shape as [number, number]
    const sums = at(inputs, 0)
    if (gate.shape.length !== 2 || sums.shape.join() !== `${n},4,${c}`)
      fail(`sums ${show(sums)} and gate ${show(gate)} do not fit`)
    if (inputs[2] && inputs[2].shape.join() !== gate.shape.join()) {
      fail(`diff_pooled ${show(inputs[2])} and gate ${show(gate)} must be alike`)
    }
    if (!(attr(attrs, 'pixels') >= 1)) fail(`pixels ${attr(attrs, 'pixels')} must be at least 1`)
    return [spec([c], 'f32'), spec([c], 'f32')]
  },
  reference(inputs, attrs) {
    const [sums, gate, pooled] = [at(inputs, 0), at(inputs, 1), inputs[2]]
    const [n, c] = gate.shape as [number, number]
    const [diffScale, diffShift] = [filled([c], 0), filled([c], 0)]
    for (let k = 0; k < n; k++)
      for (let j = 0; j < c; j++) {
        const sum = (i: number): number => sums.data[(4 * k + i) * c + j]!
        const [direct, byPool] = [gate.data[k * c + j]!, pooled ? pooled.data[k * c + j]! / attr(attrs, 'pixels') : 0]
        diffShift.data[j]! += direct * sum(0) + byPool * sum(1)
        diffScale.data[j]! += direct * sum(2) + byPool * sum(3)
      }
    return [diffScale, diffShift]
  },
}
