/** Batch normalisation in parts: statistics, application, and the two halves of its gradient. Channels are the last axis. */
import type { Shape, Tensor } from '../types.js'
import {
  at,
  attr,
  expectChannels,
  expectFlag,
  expectImages,
  expectSame,
  expectType,
  fail,
  refTensor,
  sameAsFirst,
  show,
  spec,
} from './check.js'
import type { Attrs, InferHints, OpDef, RefContext, RefTensor } from './def.js'

export interface BatchStats {
  readonly mean: RefTensor
  /** Biased. */
  readonly variance: RefTensor
  /** Values per channel. */
  readonly count: number
}

/** Two passes over src, so that a large mean costs no digits. */
export function batchStats(src: RefTensor): BatchStats {
  const c = src.shape[src.shape.length - 1]!
  const count = src.data.length / c
  const mean = refTensor([c])
  const variance = refTensor([c])
  const x = src.data
  for (let at = 0; at < x.length; at += c) for (let i = 0; i < c; i++) mean.data[i]! += x[at + i]!
  for (let i = 0; i < c; i++) mean.data[i]! /= count
  for (let at = 0; at < x.length; at += c) {
    for (let i = 0; i < c; i++) variance.data[i]! += (x[at + i]! - mean.data[i]!) ** 2
  }
  for (let i = 0; i < c; i++) variance.data[i]! /= count
  return { mean, variance, count }
}

export const invStd = (variance: RefTensor, eps: number): RefTensor =>
  refTensor(
    variance.shape,
    variance.data.map((v) => 1 / Math.sqrt(v + eps)),
  )

/** running = (1 - momentum) * running + momentum * batch, in place. */
function track(running: RefTensor, momentum: number, batch: (i: number) => number): void {
  const r = running.data
  for (let i = 0; i < r.length; i++) r[i] = (1 - momentum) * r[i]! + momentum * batch(i)
}

/** The four per-channel operands of a normalisation. */
export interface Norm {
  readonly mean: RefTensor
  readonly invStd: RefTensor
  readonly scale: RefTensor
  readonly shift: RefTensor
}

export function bnApplyReference(src: RefTensor, { mean, invStd, scale, shift }: Norm): RefTensor {
  const dst = refTensor(src.shape)
  const c = mean.data.length
  const [x, d, m, r, s, b] = [src.data, dst.data, mean.data, invStd.data, scale.data, shift.data]
  for (let at = 0; at < x.length; at += c) {
    for (let i = 0; i < c; i++) d[at + i] = (x[at + i]! - m[i]!) * r[i]! * s[i]! + b[i]!
  }
  return dst
}

export interface ScaleShift {
  readonly diffScale: RefTensor
  readonly diffShift: RefTensor
}

export function bnBwdReduceReference(diffDst: RefTensor, src: RefTensor, mean: RefTensor, invStd: RefTensor): ScaleShift {
  const c = mean.data.length
  const diffScale = refTensor([c])
  const diffShift = refTensor([c])
  const [x, g, m, r] = [src.data, diffDst.data, mean.data, invStd.data]
  for (let at = 0; at < x.length; at += c) {
    for (let i = 0; i < c; i++) {
      diffScale.data[i]! += g[at + i]! * (x[at + i]! - m[i]!) * r[i]!
      diffShift.data[i]! += g[at + i]!
    }
  }
  return { diffScale, diffShift }
}

/** `sums` where mean and inv_std are statistics of src, null where they are constants. */
export function bnBwdApplyReference(
  diffDst: RefTensor,
  src: RefTensor,
  norm: Omit<Norm, 'shift'>,
  sums: ScaleShift | null,
): RefTensor {
  const diffSrc = refTensor(src.shape)
  const c = norm.mean.data.length
  const count = src.data.length / c
  const [x, g, d, m, r, s] = [src.data, diffDst.data, diffSrc.data, norm.mean.data, norm.invStd.data, norm.scale.data]
  for (let at = 0; at < x.length; at += c) {
    for (let i = 0; i < c; i++) {
      let v = g[at + i]!
      if (sums) v -= (sums.diffShift.data[i]! + (x[at + i]! - m[i]!) * r[i]! * sums.diffScale.data[i]!) / count
      d[at + i] = s[i]! * r[i]! * v
    }
  }
  return diffSrc
}

/** Operands mean, inv_std, scale, shift of the ops that take them as inputs 1 to 4, or from `first` on. */
export function expectNorm(
  src: Tensor,
  inputs: readonly (Tensor | null)[],
  first: number,
  ports = ['mean', 'inv_std', 'scale', 'shift'],
): void {
  ports.forEach((port, i) => {
    expectChannels(port, at(inputs, first + i), 'src', src)
  })
}

/** Both sums must be there with batch statistics; without they have no meaning. */
export function expectSums(
  attrs: Attrs,
  src: Tensor,
  diffScale: Tensor | null | undefined,
  diffShift: Tensor | null | undefined,
): void {
  expectFlag(attrs, 'batch_stats')
  if (attr(attrs, 'batch_stats') === 1 && !(diffScale && diffShift))
    fail('diff_scale and diff_shift are needed with batch_stats = 1')
  expectChannels('diff_scale', diffScale, 'src', src)
  expectChannels('diff_shift', diffShift, 'src', src)
}

const expectVector = (port: string, t: Tensor, shape: Shape): void => {
  if (t.shape.join() !== shape.join() || t.dtype !== 'f32') fail(`${port} ${show(t)} must be f32[${shape.join(', ')}]`)
}

/** The buffers that hold running averages of shape [C]. */
export function expectRunning(shape: Shape, hints: InferHints): void {
  if (!hints.updates) return
  const [mean, variance] = hints.updates
  if (hints.updates.length !== 2) fail(`updates running_mean and running_var, not ${hints.updates.length} tensors`)
  expectVector('running_mean', mean!, shape)
  expectVector('running_var', variance!, shape)
}

/** mean and inv_std of src; tracks them in `ctx.updates`. */
export function bnStatsReference(src: RefTensor, attrs: Attrs, ctx: RefContext): [RefTensor, RefTensor] {
  const { mean, variance, count } = batchStats(src)
  const momentum = attr(attrs, 'momentum')
  const unbiased = count > 1 ? count / (count - 1) : 1
  track(at(ctx.updates, 0), momentum, (i) => mean.data[i]!)
  track(at(ctx.updates, 1), momentum, (i) => variance.data[i]! * unbiased)
  return [mean, invStd(variance, attr(attrs, 'eps'))]
}

/** Updates running_mean and running_var with the unbiased variance (torch's momentum). */
export const bnStats: OpDef = {
  name: 'bn_stats',
  infer(inputs, _attrs, hints) {
    const src = at(inputs, 0)
    expectImages('src', src)
    const shape = [src.shape[3]!]
    expectRunning(shape, hints)
    return [spec(shape, 'f32'), spec(shape, 'f32')]
  },
  // Its part of the gradient is in bn_bwd_apply with batch_stats = 1.
  grad: () => [null],
  reference: (inputs, attrs, _outputs, ctx) => bnStatsReference(at(inputs, 0), attrs, ctx),
}

export const bnInvStd: OpDef = {
  name: 'bn_inv_std',
  infer(inputs) {
    expectType('var', at(inputs, 0), 'f32')
    return sameAsFirst(inputs)
  },
  // Made of running statistics, which are constants to the gradient.
  grad: () => [null],
  reference: (inputs, attrs) => [invStd(at(inputs, 0), attr(attrs, 'eps'))],
}

export const normOf = (inputs: readonly (RefTensor | null)[], first: number): Norm => ({
  mean: at(inputs, first),
  invStd: at(inputs, first + 1),
  scale: at(inputs, first + 2),
  shift: at(inputs, first + 3),
})

export const bnApply: OpDef = {
  name: 'bn_apply',
  infer(inputs, attrs) {
    const src = at(inputs, 0)
    expectImages('src', src)
    expectNorm(src, inputs, 1)
    expectFlag(attrs, 'batch_stats')
    return sameAsFirst(inputs)
  },
  grad(ctx) {
    const [src, mean, inv_std, scale] = ctx.node.inputs as readonly Tensor[]
    const diff_dst = at(ctx.diffOutputs, 0)
    const batchStats = attr(ctx.node.attrs, 'batch_stats')
    const sumsWanted = ctx.wants(3) || ctx.wants(4) || (ctx.wants(0) && batchStats === 1)
    const sums = sumsWanted
      ? ctx.emit(
          'bn_bwd_reduce',
          'bwd_reduce',
          { diff_dst, src: src!, mean: mean!, inv_std: inv_std! },
          {},
          {
            into: { diff_scale: ctx.target(3), diff_shift: ctx.target(4) },
          },
        )
      : {}
    const corrections = batchStats === 1 ? { diff_scale: sums['diff_scale'], diff_shift: sums['diff_shift'] } : {}
    const diffSrc = ctx.wants(0)
      ? ctx.emit(
          'bn_bwd_apply',
          'bwd_apply',
          { diff_dst, src: src!, mean: mean!, inv_std: inv_std!, scale: scale!, ...corrections },
          {
            batch_stats: batchStats,
          },
        )['diff_src']!
      : null
    return [diffSrc, null, null, sums['diff_scale'] ?? null, sums['diff_shift'] ?? null]
  },
  reference: (inputs) => [bnApplyReference(at(inputs, 0), normOf(inputs, 1))],
}

export const bnBwdReduce: OpDef = {
  name: 'bn_bwd_reduce',
  infer(inputs) {
    const src = at(inputs, 1)
    expectSame('diff_dst', at(inputs, 0), 'src', src)
    expectNorm(src, inputs, 2, ['mean', 'inv_std'])
    const shape = [src.shape[3]!]
    return [spec(shape, 'f32'), spec(shape, 'f32')]
  },
  reference(inputs) {
    const { diffScale, diffShift } = bnBwdReduceReference(at(inputs, 0), at(inputs, 1), at(inputs, 2), at(inputs, 3))
    return [diffScale, diffShift]
  },
}

export const bnBwdApply: OpDef = {
  name: 'bn_bwd_apply',
  infer(inputs, attrs) {
    const src = at(inputs, 1)
    expectSame('diff_dst', at(inputs, 0), 'src', src)
    expectNorm(src, inputs, 2, ['mean', 'inv_std', 'scale'])
    expectSums(attrs, src, inputs[5], inputs[6])
    return sameAsFirst(inputs)
  },
  reference(inputs, attrs) {
    const sums = attr(attrs, 'batch_stats') === 1 ? { diffScale: at(inputs, 5), diffShift: at(inputs, 6) } : null
    const norm = { mean: at(inputs, 2), invStd: at(inputs, 3), scale: at(inputs, 4) }
    return [bnBwdApplyReference(at(inputs, 0), at(inputs, 1), norm, sums)]
  },
}
