/**
 * Squeeze-and-excitation's gate in one op: hidden = pooled W0^T + b0 (before the activation, kept for the backward pass),
 * gate = sigmoid(act(hidden) W1^T + b1). pooled [N, C], weights0 [r, C], weights1 [C, r]; all FP32.
 */
import { actCode, type Tensor } from '../types.js'
import { activationBwdReference, activationReference, sigmoidBwdFromDst } from './activation.js'
import { at, attr, expectAct, expectType, fail, show, spec } from './check.js'
import type { OpDef } from './def.js'
import { linearBwdDataReference, linearBwdWeightsReference, linearReference } from './linear.js'

function expectMatrices(pooled: Tensor, weights0: Tensor, weights1: Tensor): { n: number; c: number; r: number } {
  const [n, c] = pooled.shape
  const r = weights0.shape[0]
  for (const [port, t] of [
    ['pooled', pooled],
    ['weights0', weights0],
    ['weights1', weights1],
  ] as const)
    expectType(port, t, 'f32')
  if (pooled.shape.length !== 2 || weights0.shape.join() !== `${r},${c}` || weights1.shape.join() !== `${c},${r}`) {
    fail(`pooled ${show(pooled)} [N, C], weights0 ${show(weights0)} [r, C] and weights1 ${show(weights1)} [C, r] do not fit`)
  }
  return { n: n!, c: c!, r: r! }
}

const expectBias = (port: string, t: Tensor, size: number): void => {
  if (t.shape.join() !== `${size}` || t.dtype !== 'f32') fail(`${port} ${show(t)} must be f32[${size}]`)
}

export const seGate: OpDef = {
  name: 'se_gate',
  infer(inputs, attrs) {
    const { n, c, r } = expectMatrices(at(inputs, 0), at(inputs, 1), at(inputs, 3))
    expectBias('bias0', at(inputs, 2), r)
    expectBias('bias1', at(inputs, 4), c)
    expectAct(attrs)
    return [spec([n, c], 'f32'), spec([n, r], 'f32')]
  },
  grad(ctx) {
    const [pooled, weights0, , weights1] = ctx.node.inputs
    const [gate, hidden] = ctx.node.outputs
    if (ctx.diffOutputs[1]) fail('the hidden layer of a gate is no output of its own')
    const made = ctx.emit(
      'se_gate_bwd',
      'bwd',
      { diff_gate: at(ctx.diffOutputs, 0), pooled, hidden, gate, weights0, weights1 },
      { act: attr(ctx.node.attrs, 'act') },
      {
        into: {
          diff_weights0: ctx.target(1),
          diff_bias0: ctx.target(2),
          diff_weights1: ctx.target(3),
          diff_bias1: ctx.target(4),
        },
      },
    )
    return ['diff_pooled', 'diff_weights0', 'diff_bias0', 'diff_weights1', 'diff_bias1'].map((port, i) =>
      ctx.wants(i) ? made[port]! : null,
    )
  },
  reference(inputs, attrs) {
    const hidden = linearReference(at(inputs, 0), at(inputs, 1), at(inputs, 2))
    const logit = linearReference(activationReference(hidden, attr(attrs, 'act')), at(inputs, 3), at(inputs, 4))
    return [activationReference(logit, actCode('sigmoid')), hidden]
  },
  flops: (node) => {
    const [n, c] = at(node.outputs, 0).shape as [number, number]
    return 4 * n * c * at(node.outputs, 1).shape[1]!
  },
}

export const seGateBwd: OpDef = {
  name: 'se_gate_bwd',
  infer(inputs, attrs) {
    const [diffGate, pooled, hidden, gate] = [at(inputs, 0), at(inputs, 1), at(inputs, 2), at(inputs, 3)]
    const { n, c, r } = expectMatrices(pooled, at(inputs, 4), at(inputs, 5))
    if (diffGate.shape.join() !== pooled.shape.join())
      fail(`diff_gate ${show(diffGate)} and pooled ${show(pooled)} must be alike`)
    if (gate.shape.join() !== pooled.shape.join()) fail(`gate ${show(gate)} and pooled ${show(pooled)} must be alike`)
    if (hidden.shape.join() !== `${n},${r}`) fail(`hidden ${show(hidden)} must be f32[${n}, ${r}]`)
    expectAct(attrs)
    return [spec([n, c], 'f32'), spec([r, c], 'f32'), spec([r], 'f32'), spec([c, r], 'f32'), spec([c], 'f32')]
  },
  reference(inputs, attrs) {
    const [hidden, act] = [at(inputs, 2), attr(attrs, 'act')]
    const diffLogit = sigmoidBwdFromDst(at(inputs, 0), at(inputs, 3))
    const second = linearBwdWeightsReference(activationReference(hidden, act), diffLogit)
    const diffHidden = activationBwdReference(linearBwdDataReference(diffLogit, at(inputs, 5)), hidden, act)
    const first = linearBwdWeightsReference(at(inputs, 1), diffHidden)
    const diffPooled = linearBwdDataReference(diffHidden, at(inputs, 4))
    return [diffPooled, first.diffWeights, first.diffBias, second.diffWeights, second.diffBias]
  },
  flops: (node) => {
    const [n, c] = at(node.inputs, 1).shape as [number, number]
    return 8 * n * c * at(node.inputs, 2).shape[1]!
  },
}
