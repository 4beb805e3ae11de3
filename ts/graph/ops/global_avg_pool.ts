/** Mean over H and W: images [N, H, W, C] to FP32 [N, C]. */
import type { Shape } from '../types.js'
import { at, expectImages, expectPerSample, expectType, hintedShape, nhwc, refTensor, spec } from './check.js'
import type { OpDef, RefTensor } from './def.js'

export function globalAvgPoolReference(src: RefTensor): RefTensor {
  const [n, h, w, c] = nhwc(src.shape)
  const dst = refTensor([n, c])
  const pixels = h * w
  for (let b = 0; b < n; b++) {
    for (let p = 0; p < pixels; p++) {
      const srcAt = (b * pixels + p) * c
      for (let i = 0; i < c; i++) dst.data[b * c + i]! += src.data[srcAt + i]!
    }
  }
  for (let i = 0; i < dst.data.length; i++) dst.data[i]! /= pixels
  return dst
}

export function globalAvgPoolBwdReference(diffDst: RefTensor, srcShape: Shape): RefTensor {
  const [n, h, w, c] = nhwc(srcShape)
  const diffSrc = refTensor(srcShape)
  const pixels = h * w
  for (let b = 0; b < n; b++) {
    for (let p = 0; p < pixels; p++) {
      for (let i = 0; i < c; i++) diffSrc.data[(b * pixels + p) * c + i] = diffDst.data[b * c + i]! / pixels
    }
  }
  return diffSrc
}

export const globalAvgPool: OpDef = {
  name: 'global_avg_pool',
  infer(inputs) {
    const src = at(inputs, 0)
    expectImages('src', src)
    return [spec([src.shape[0]!, src.shape[3]!], 'f32')]
  },
  grad(ctx) {
    if (!ctx.wants(0)) return [null]
    const src = at(ctx.node.inputs, 0)
    const options = { shapes: [src.shape], dtype: src.dtype }
    return [ctx.emit('global_avg_pool_bwd', 'bwd', { diff_dst: at(ctx.diffOutputs, 0) }, {}, options)['diff_src']!]
  },
  reference: (inputs) => [globalAvgPoolReference(at(inputs, 0))],
}

export const globalAvgPoolBwd: OpDef = {
  name: 'global_avg_pool_bwd',
  infer(inputs, _attrs, hints) {
    const diffDst = at(inputs, 0)
    expectType('diff_dst', diffDst, 'f32')
    const src = {
      id: -1,
      name: 'diff_src',
      shape: hintedShape(hints, 'diff_src'),
      dtype: hints.dtype ?? 'f32',
      role: 'activation',
    } as const
    expectImages('diff_src', src)
    expectPerSample('diff_dst', diffDst, 'diff_src', src)
    return [spec(src.shape, src.dtype)]
  },
  reference: (inputs, _attrs, outputs) => [globalAvgPoolBwdReference(at(inputs, 0), at(outputs, 0).shape)],
}
