/** Squeeze-and-excitation's multiply: images [N, H, W, C] times an FP32 gate [N, C]. */
import { at, expectImages, expectPerSample, expectSame, nhwc, refTensor, sameAsFirst, spec } from './check.js'
import type { OpDef, RefTensor } from './def.js'

export function channelScaleReference(src: RefTensor, gate: RefTensor): RefTensor {
  const [n, h, w, c] = nhwc(src.shape)
  const dst = refTensor(src.shape)
  const pixels = h * w
  for (let b = 0; b < n; b++) {
    for (let p = 0; p < pixels; p++) {
      const srcAt = (b * pixels + p) * c
      for (let i = 0; i < c; i++) dst.data[srcAt + i] = src.data[srcAt + i]! * gate.data[b * c + i]!
    }
  }
  return dst
}

export function channelScaleBwdGateReference(diffDst: RefTensor, src: RefTensor): RefTensor {
  const [n, h, w, c] = nhwc(src.shape)
  const diffGate = refTensor([n, c])
  const pixels = h * w
  for (let b = 0; b < n; b++) {
    for (let p = 0; p < pixels; p++) {
      const srcAt = (b * pixels + p) * c
      for (let i = 0; i < c; i++) diffGate.data[b * c + i]! += diffDst.data[srcAt + i]! * src.data[srcAt + i]!
    }
  }
  return diffGate
}

export const channelScale: OpDef = {
  name: 'channel_scale',
  infer(inputs) {
    const src = at(inputs, 0)
    expectImages('src', src)
    expectPerSample('gate', inputs[1], 'src', src)
    return sameAsFirst(inputs)
  },
  grad(ctx) {
    const [src, gate] = [at(ctx.node.inputs, 0), at(ctx.node.inputs, 1)]
    const diff_dst = at(ctx.diffOutputs, 0)
    return [
      ctx.wants(0) ? ctx.emit('channel_scale', 'bwd', { src: diff_dst, gate }, {})['dst']! : null,
      ctx.wants(1) ? ctx.emit('channel_scale_bwd_gate', 'bwd_gate', { diff_dst, src }, {})['diff_gate']! : null,
    ]
  },
  reference: (inputs) => [channelScaleReference(at(inputs, 0), at(inputs, 1))],
}

export const channelScaleBwdGate: OpDef = {
  name: 'channel_scale_bwd_gate',
  infer(inputs) {
    const src = at(inputs, 1)
    expectImages('src', src)
    expectSame('diff_dst', at(inputs, 0), 'src', src)
    return [spec([src.shape[0]!, src.shape[3]!], 'f32')]
  },
  reference: (inputs) => [channelScaleBwdGateReference(at(inputs, 0), at(inputs, 1))],
}
