/** Stochastic depth (one draw a sample) and dropout (one draw an element). Kept values are scaled by 1 / (1 - rate). */
import { dropThreshold, philoxU32 } from '../philox.js'
import { at, attr, expectRate, expectType, refTensor, sameAsFirst } from './check.js'
import type { Attrs, GradContext, OpDef, RefTensor } from './def.js'

/** The factor of draw `element`: 0 or 1 / (1 - rate). */
function keepFactor(attrs: Attrs, scalars: Readonly<Record<string, number>>): (element: number) => number {
  const rate = attr(attrs, 'drop_rate')
  if (rate === 0) return () => 1
  const [stream, threshold, kept] = [attr(attrs, 'rng_stream'), dropThreshold(rate), 1 / (1 - rate)]
  const [seed, step] = [scalars['seed'] ?? 0, scalars['step'] ?? 0]
  return (element) => (philoxU32(seed, step, stream, element) < threshold ? 0 : kept)
}

export function dropPathReference(src: RefTensor, attrs: Attrs, scalars: Readonly<Record<string, number>>): RefTensor {
  const factor = keepFactor(attrs, scalars)
  const perSample = src.data.length / src.shape[0]!
  const dst = refTensor(src.shape)
  for (let n = 0; n < src.shape[0]!; n++) {
    const f = factor(n)
    for (let i = n * perSample; i < (n + 1) * perSample; i++) dst.data[i] = src.data[i]! * f
  }
  return dst
}

function infer(inputs: Parameters<OpDef['infer']>[0], attrs: Attrs): ReturnType<OpDef['infer']> {
  expectType('src', at(inputs, 0), 'f32', 'bf16', 'f16')
  expectRate(attrs)
  return sameAsFirst(inputs)
}

/** The same draws again on the gradient. */
function grad(ctx: GradContext): ReturnType<NonNullable<OpDef['grad']>> {
  return [ctx.wants(0) ? ctx.emit(ctx.node.op, 'bwd', { src: at(ctx.diffOutputs, 0) }, ctx.node.attrs)['dst']! : null]
}

export const dropPath: OpDef = {
  name: 'drop_path',
  infer,
  grad,
  reference: (inputs, attrs, _outputs, ctx) => [dropPathReference(at(inputs, 0), attrs, ctx.scalars)],
}

export const dropout: OpDef = {
  name: 'dropout',
  infer,
  grad,
  reference(inputs, attrs, _outputs, ctx) {
    const src = at(inputs, 0)
    const factor = keepFactor(attrs, ctx.scalars)
    return [
      refTensor(
        src.shape,
        src.data.map((v, i) => v * factor(i)),
      ),
    ]
  },
}
