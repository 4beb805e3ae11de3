/** Elementwise activations on any shape. ReLU6 has derivative 1 strictly between 0 and 6, as in PyTorch. */
import { ACTIVATIONS, type Activation } from '../types.js'
import { at, attr, expectAct, expectSame, expectType, fail, refTensor, sameAsFirst } from './check.js'
import type { OpDef, RefTensor } from './def.js'

let tanhOf: ((x: number) => number) | undefined

const sigmoid = (x: number): number => (tanhOf ? 0.5 + 0.5 * tanhOf(x / 2) : 1 / (1 + Math.exp(-x)))

/** What `body` gives where sigmoids are made of such a tanh, as kernels of 16-bit types make them: what an error of it moves. */
export function withTanh<T>(tanh: (x: number) => number, body: () => T): T {
  tanhOf = tanh
  try {
    return body()
  } finally {
    tanhOf = undefined
  }
}

const FORWARD: Record<Activation, (x: number) => number> = {
  identity: (x) => x,
  silu: (x) => x * sigmoid(x),
  relu: (x) => Math.max(x, 0),
  relu6: (x) => Math.min(Math.max(x, 0), 6),
  sigmoid,
}

const DERIVATIVE: Record<Activation, (x: number) => number> = {
  identity: () => 1,
  silu: (x) => {
    const s = sigmoid(x)
    return s * (1 + x * (1 - s))
  },
  relu: (x) => (x > 0 ? 1 : 0),
  relu6: (x) => (x > 0 && x < 6 ? 1 : 0),
  sigmoid: (x) => {
    const s = sigmoid(x)
    return s * (1 - s)
  },
}

const named = (code: number): Activation => ACTIVATIONS[code] ?? fail(`${code} is no activation code`)

export function activationReference(src: RefTensor, act: number): RefTensor {
  return refTensor(src.shape, src.data.map(FORWARD[named(act)]))
}

export function activationBwdReference(diffDst: RefTensor, src: RefTensor, act: number): RefTensor {
  const derivative = DERIVATIVE[named(act)]
  const x = src.data
  return refTensor(
    src.shape,
    diffDst.data.map((g, i) => g * derivative(x[i]!)),
  )
}

/** diff_src of a sigmoid from its own output. */
export function sigmoidBwdFromDst(diffDst: RefTensor, dst: RefTensor): RefTensor {
  const s = dst.data
  return refTensor(
    dst.shape,
    diffDst.data.map((g, i) => g * s[i]! * (1 - s[i]!)),
  )
}

export const activation: OpDef = {
  name: 'activation',
  infer(inputs, attrs) {
    expectType('src', at(inputs, 0), 'f32', 'bf16', 'f16')
    expectAct(attrs)
    return sameAsFirst(inputs)
  },
  grad(ctx) {
    if (!ctx.wants(0)) return [null]
    const src = at(ctx.node.inputs, 0)
    return [
      ctx.emit('activation_bwd', 'bwd', { diff_dst: at(ctx.diffOutputs, 0), src }, { act: attr(ctx.node.attrs, 'act') })[
        'diff_src'
      ]!,
    ]
  },
  reference: (inputs, attrs) => [activationReference(at(inputs, 0), attr(attrs, 'act'))],
}

export const activationBwd: OpDef = {
  name: 'activation_bwd',
  infer(inputs, attrs) {
    expectAct(attrs)
    expectSame('diff_dst', at(inputs, 0), 'src', at(inputs, 1))
    return sameAsFirst(inputs)
  },
  reference: (inputs, attrs) => [activationBwdReference(at(inputs, 0), at(inputs, 1), attr(attrs, 'act'))],
}
