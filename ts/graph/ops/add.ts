/** Elementwise sum of two tensors of one shape and type. */
import { at, expectSame, expectType, refTensor, sameAsFirst } from './check.js'
import type { OpDef, RefTensor } from './def.js'

export function addReference(a: RefTensor, b: RefTensor): RefTensor {
  return refTensor(
    a.shape,
    a.data.map((v, i) => v + b.data[i]!),
  )
}

export const add: OpDef = {
  name: 'add',
  infer(inputs) {
    expectType('src0', at(inputs, 0), 'f32', 'bf16', 'f16')
    expectSame('src0', at(inputs, 0), 'src1', at(inputs, 1))
    return sameAsFirst(inputs)
  },
  grad(ctx) {
    const diffDst = at(ctx.diffOutputs, 0)
    return [ctx.wants(0) ? diffDst : null, ctx.wants(1) ? diffDst : null]
  },
  reference: (inputs) => [addReference(at(inputs, 0), at(inputs, 1))],
}
