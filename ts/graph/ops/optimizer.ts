/**
 * Updates of parameters in place, over lists of gradients that lie at their parameters' offsets; all FP32.
 * Hyper-parameters come with each step (ts/runtime/scalars.ts); formulas and worked examples: test/passes/optimizer.test.ts.
 */
import type { Tensor } from '../types.js'
import { at, attr, expectFlag, expectType, fail, refTensor, sameShape, show, spec } from './check.js'
import type { Attrs, InferHints, Inputs, OpDef, RefContext, RefTensor } from './def.js'

function inferUpdates(inputs: Inputs, _attrs: Attrs, hints: InferHints): [] {
  const [norm, ...grads] = inputs
  if (norm && norm.shape.join() !== '1') fail(`norm ${show(norm)} must be f32[1]`)
  if (hints.updates && hints.updates.length !== grads.length)
    fail(`${grads.length} gradients for ${hints.updates.length} parameters`)
  grads.forEach((grad, i) => {
    const param = hints.updates?.[i]
    if (param && !(grad && sameShape(param.shape, grad.shape)))
      fail(`gradient ${grad ? show(grad) : 'none'} of ${param.name} ${show(param)}`)
  })
  return []
}

type Step = (i: number, w: number, g: number) => number

/** Runs `step(parameter)` for every element; it gets the weight and its clipped gradient and returns the new weight. */
function updateAll(inputs: readonly (RefTensor | null)[], ctx: RefContext, stepOf: (param: Tensor) => Step): [] {
  const s = ctx.scalars
  const [norm, ...grads] = inputs
  const clip = s['clip_norm'] ?? 0
  const scale = norm && clip > 0 ? clip / Math.max(norm.data[0]!, clip) : 1
  ctx.node.updates.forEach((param, k) => {
    const step = stepOf(param)
    const [w, g] = [at(ctx.updates, k).data, at(grads, k).data]
    for (let i = 0; i < w.length; i++) w[i] = step(i, w[i]!, g[i]! * scale)
    if (ctx.node.attrs['ema'] === 1) average(ctx, param, w)
  })
  return []
}

const scalar = (ctx: RefContext, name: string): number => ctx.scalars[name] ?? 0

function average(ctx: RefContext, t: Tensor, value: Float64Array): void {
  const d = scalar(ctx, 'ema_decay')
  const ema = ctx.state('ema', t)
  for (let i = 0; i < ema.length; i++) ema[i] = d * ema[i]! + (1 - d) * value[i]!
}

/** torch: g += wd w; buf = m buf + g; w -= lr (nesterov ? g + m buf : buf). moment0 = buf, starting at 0. */
export const optimizerSgd: OpDef = {
  name: 'optimizer_sgd',
  infer(inputs, attrs, hints) {
    expectFlag(attrs, 'nesterov')
    expectFlag(attrs, 'ema')
    return inferUpdates(inputs, attrs, hints)
  },
  reference(inputs, attrs, _outputs, ctx) {
    const [lr, m] = [scalar(ctx, 'lr'), scalar(ctx, 'momentum')]
    const wd = scalar(ctx, 'weight_decay') * attr(attrs, 'decay_mult')
    const nesterov = attr(attrs, 'nesterov') === 1
    return updateAll(inputs, ctx, (param) => {
      const buf = ctx.state('moment0', param)
      return (i, w, grad) => {
        const g = grad + wd * w
        buf[i] = m * buf[i]! + g
        return w - lr * (nesterov ? g + m * buf[i]! : buf[i]!)
      }
    })
  },
}

/** tf_form: eps inside the root and lr inside the momentum buffer; otherwise torch's. moment0 = mean square, moment1 = buffer. */
export const optimizerRmsprop: OpDef = {
  name: 'optimizer_rmsprop',
  infer(inputs, attrs, hints) {
    expectFlag(attrs, 'tf_form')
    expectFlag(attrs, 'ema')
    return inferUpdates(inputs, attrs, hints)
  },
  reference(inputs, attrs, _outputs, ctx) {
    const [lr, m, alpha, eps] = [scalar(ctx, 'lr'), scalar(ctx, 'momentum'), scalar(ctx, 'alpha'), scalar(ctx, 'eps')]
    const wd = scalar(ctx, 'weight_decay') * attr(attrs, 'decay_mult')
    const tf = attr(attrs, 'tf_form') === 1
    return updateAll(inputs, ctx, (param) => {
      const [ms, buf] = [ctx.state('moment0', param), ctx.state('moment1', param)]
      return (i, w, grad) => {
        const g = grad + wd * w
        ms[i] = alpha * ms[i]! + (1 - alpha) * g * g
        buf[i] = m * buf[i]! + (tf ? (lr * g) / Math.sqrt(ms[i]! + eps) : g / (Math.sqrt(ms[i]!) + eps))
        return w - (tf ? buf[i]! : lr * buf[i]!)
      }
    })
  },
}

/** torch: decoupled decay; beta1 = momentum, beta2 = alpha; bias corrections with `optimizer_step` (from 1). */
export const optimizerAdamw: OpDef = {
  name: 'optimizer_adamw',
  infer(inputs, attrs, hints) {
    expectFlag(attrs, 'ema')
    return inferUpdates(inputs, attrs, hints)
  },
  reference(inputs, attrs, _outputs, ctx) {
    const [lr, beta1, beta2, eps] = [scalar(ctx, 'lr'), scalar(ctx, 'momentum'), scalar(ctx, 'alpha'), scalar(ctx, 'eps')]
    const wd = scalar(ctx, 'weight_decay') * attr(attrs, 'decay_mult')
    const t = scalar(ctx, 'optimizer_step')
    const [correction1, correction2] = [1 - beta1 ** t, 1 - beta2 ** t]
    return updateAll(inputs, ctx, (param) => {
      const [m, v] = [ctx.state('moment0', param), ctx.state('moment1', param)]
      return (i, w, g) => {
        m[i] = beta1 * m[i]! + (1 - beta1) * g
        v[i] = beta2 * v[i]! + (1 - beta2) * g * g
        return w * (1 - lr * wd) - (lr * (m[i]! / correction1)) / (Math.sqrt(v[i]! / correction2) + eps)
      }
    })
  },
}

/** L2 norm over all gradients. */
export const gradNorm: OpDef = {
  name: 'grad_norm',
  infer(inputs) {
    for (const [i, grad] of inputs.entries()) expectType(`gradient ${i}`, at([grad], 0), 'f32')
    return [spec([1], 'f32')]
  },
  reference(inputs) {
    let sum = 0
    for (const grad of inputs) for (const g of at([grad], 0).data) sum += g * g
    return [refTensor([1], Float64Array.of(Math.sqrt(sum)))]
  },
}

/** ema = decay * ema + (1 - decay) * value, for the parameters and buffers given: those that no update with `ema` averages. */
export const emaUpdate: OpDef = {
  name: 'ema_update',
  infer(inputs) {
    for (const t of inputs)
      if (t?.role !== 'parameter' && t?.role !== 'buffer') fail(`${t?.name ?? 'nothing'} is neither parameter nor buffer`)
    return []
  },
  reference(inputs, _attrs, _outputs, ctx) {
    ctx.node.inputs.forEach((t, k) => {
      average(ctx, at([t], 0), at(inputs, k).data)
    })
    return []
  },
}
