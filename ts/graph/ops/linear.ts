/** Matrix product in FP32: src [N, I], weights [O, I], bias [O], dst = src weights^T + bias [N, O]. */
import { at, expectRank, expectType, fail, refTensor, show, spec } from './check.js'
import type { OpDef, RefTensor } from './def.js'

export function linearReference(src: RefTensor, weights: RefTensor, bias: RefTensor | null): RefTensor {
  const [n, ic] = src.shape as [number, number]
  const oc = weights.shape[0]!
  const dst = refTensor([n, oc])
  for (let b = 0; b < n; b++) {
    for (let o = 0; o < oc; o++) {
      let sum = bias ? bias.data[o]! : 0
      for (let i = 0; i < ic; i++) sum += src.data[b * ic + i]! * weights.data[o * ic + i]!
      dst.data[b * oc + o] = sum
    }
  }
  return dst
}

export function linearBwdDataReference(diffDst: RefTensor, weights: RefTensor): RefTensor {
  const [n, oc] = diffDst.shape as [number, number]
  const ic = weights.shape[1]!
  const diffSrc = refTensor([n, ic])
  for (let b = 0; b < n; b++) {
    for (let o = 0; o < oc; o++) {
      const g = diffDst.data[b * oc + o]!
      for (let i = 0; i < ic; i++) diffSrc.data[b * ic + i]! += g * weights.data[o * ic + i]!
    }
  }
  return diffSrc
}

export function linearBwdWeightsReference(src: RefTensor, diffDst: RefTensor): { diffWeights: RefTensor; diffBias: RefTensor } {
  const [n, ic] = src.shape as [number, number]
  const oc = diffDst.shape[1]!
  const diffWeights = refTensor([oc, ic])
  const diffBias = refTensor([oc])
  for (let b = 0; b < n; b++) {
    for (let o = 0; o < oc; o++) {
      const g = diffDst.data[b * oc + o]!
      diffBias.data[o]! += g
      for (let i = 0; i < ic; i++) diffWeights.data[o * ic + i]! += g * src.data[b * ic + i]!
    }
  }
  return { diffWeights, diffBias }
}

const matrix = (port: string, t: Parameters<typeof expectRank>[1]): void => {
  expectRank(port, t, 2)
  expectType(port, t, 'f32')
}

const flopsOf = (a: readonly number[], b: readonly number[]): number => 2 * a[0]! * a[1]! * b[1]!

export const linear: OpDef = {
  name: 'linear',
  infer(inputs) {
    const [src, weights, bias] = [at(inputs, 0), at(inputs, 1), inputs[2]]
    matrix('src', src)
    matrix('weights', weights)
    if (src.shape[1] !== weights.shape[1]) fail(`src ${show(src)} and weights ${show(weights)} [out, in] do not fit`)
    if (bias && (bias.shape.length !== 1 || bias.shape[0] !== weights.shape[0]))
      fail(`bias ${show(bias)} and weights ${show(weights)} do not fit`)
    return [spec([src.shape[0]!, weights.shape[0]!], 'f32')]
  },
  grad(ctx) {
    const [src, weights] = [at(ctx.node.inputs, 0), at(ctx.node.inputs, 1)]
    const diff_dst = at(ctx.diffOutputs, 0)
    const made: Partial<Record<string, typeof src>> =
      ctx.wants(1) || ctx.wants(2)
        ? ctx.emit(
            'linear_bwd_weights',
            'bwd_weights',
            { src, diff_dst },
            {},
            {
              want: ctx.wants(2) ? ['diff_bias'] : [],
              into: { diff_weights: ctx.target(1), diff_bias: ctx.wants(2) ? ctx.target(2) : undefined },
            },
          )
        : {}
    const diffSrc = ctx.wants(0) ? ctx.emit('linear_bwd_data', 'bwd_data', { diff_dst, weights }, {})['diff_src']! : null
    return [diffSrc, made['diff_weights'] ?? null, made['diff_bias'] ?? null]
  },
  reference: (inputs, _attrs, _outputs, ctx) => [
    linearReference(ctx.operand(at(inputs, 0)), ctx.operand(at(inputs, 1)), inputs[2] ?? null),
  ],
  flops: (node) => flopsOf(at(node.outputs, 0).shape, at(node.inputs, 1).shape),
}

export const linearBwdData: OpDef = {
  name: 'linear_bwd_data',
  infer(inputs) {
    const [diffDst, weights] = [at(inputs, 0), at(inputs, 1)]
    matrix('diff_dst', diffDst)
    matrix('weights', weights)
    if (diffDst.shape[1] !== weights.shape[0]) fail(`diff_dst ${show(diffDst)} and weights ${show(weights)} [out, in] do not fit`)
    return [spec([diffDst.shape[0]!, weights.shape[1]!], 'f32')]
  },
  reference: (inputs, _attrs, _outputs, ctx) => [linearBwdDataReference(ctx.operand(at(inputs, 0)), ctx.operand(at(inputs, 1)))],
  flops: (node) => flopsOf(at(node.inputs, 0).shape, at(node.inputs, 1).shape),
}

export const linearBwdWeights: OpDef = {
  name: 'linear_bwd_weights',
  infer(inputs) {
    const [src, diffDst] = [at(inputs, 0), at(inputs, 1)]
    matrix('src', src)
    matrix('diff_dst', diffDst)
    if (src.shape[0] !== diffDst.shape[0]) fail(`src ${show(src)} and diff_dst ${show(diffDst)} do not fit`)
    return [spec([diffDst.shape[1]!, src.shape[1]!], 'f32'), spec([diffDst.shape[1]!], 'f32')]
  },
  reference(inputs, _attrs, _outputs, ctx) {
    const [src, diffDst] = [at(inputs, 0), at(inputs, 1)]
    const { diffWeights } = linearBwdWeightsReference(ctx.operand(src), ctx.operand(diffDst))
    return [diffWeights, linearBwdWeightsReference(src, diffDst).diffBias]
  },
  flops: (node) => flopsOf(at(node.inputs, 1).shape, at(node.inputs, 0).shape),
}
