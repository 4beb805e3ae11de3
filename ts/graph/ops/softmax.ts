/** Softmax over classes [N, K], and its cross-entropy with label smoothing in one op. */
import type { Tensor } from '../types.js'
import { at, attr, expectRank, expectType, fail, refTensor, sameAsFirst, show, spec } from './check.js'
import type { OpDef, RefTensor } from './def.js'

/** Row-wise log of the softmax. */
function logSoftmax(logits: RefTensor): RefTensor {
  const [n, k] = logits.shape as [number, number]
  const dst = refTensor(logits.shape)
  for (let b = 0; b < n; b++) {
    const row = logits.data.subarray(b * k, (b + 1) * k)
    let max = -Infinity
    for (const v of row) max = Math.max(max, v)
    let sum = 0
    for (const v of row) sum += Math.exp(v - max)
    const log = max + Math.log(sum)
    for (let i = 0; i < k; i++) dst.data[b * k + i] = row[i]! - log
  }
  return dst
}

const expectLogits = (logits: Tensor): void => {
  expectRank('logits', logits, 2)
  expectType('logits', logits, 'f32')
}

export const softmax: OpDef = {
  name: 'softmax',
  infer(inputs) {
    expectLogits(at(inputs, 0))
    return sameAsFirst(inputs)
  },
  reference(inputs) {
    const log = logSoftmax(at(inputs, 0))
    return [refTensor(log.shape, log.data.map(Math.exp))]
  },
}

/** Logits strictly above the label's, ties counted where their index is smaller. */
function rankOf(row: Float64Array, label: number): number {
  const own = row[label]!
  let rank = 0
  for (let i = 0; i < row.length; i++) if (row[i]! > own || (row[i] === own && i < label)) rank++
  return rank
}

/** Loss = mean over samples with a label of (1-s) NLL + s mean_k(-log p_k); label -1 = no sample. A batch without any has loss 0. */
export const softmaxCrossEntropy: OpDef = {
  name: 'softmax_cross_entropy',
  infer(inputs, attrs) {
    const [logits, labels] = [at(inputs, 0), at(inputs, 1)]
    expectLogits(logits)
    expectType('labels', labels, 'i32')
    if (labels.shape.length !== 1 || labels.shape[0] !== logits.shape[0])
      fail(`labels ${show(labels)} and logits ${show(logits)} do not fit`)
    const smoothing = attr(attrs, 'label_smoothing')
    if (!(smoothing >= 0 && smoothing <= 1)) fail(`label_smoothing ${smoothing} is outside [0, 1]`)
    return [spec([1], 'f32'), spec(logits.shape, 'f32'), spec(labels.shape, 'i32')]
  },
  /** The op makes its own gradient, for a loss that is the root. */
  grad(ctx) {
    if (!ctx.isRoot || ctx.diffOutputs[0]) fail('only the loss itself may be differentiated, not what is made of it')
    return [ctx.wants(0) ? at(ctx.node.outputs, 1) : null, null]
  },
  reference(inputs, attrs) {
    const [logits, labels] = [at(inputs, 0), at(inputs, 1)]
    const [n, k] = logits.shape as [number, number]
    const s = attr(attrs, 'label_smoothing')
    const log = logSoftmax(logits)
    const [loss, diff, rank] = [refTensor([1]), refTensor([n, k]), refTensor([n])]
    const valid = labels.data.reduce((count, label) => count + (label >= 0 ? 1 : 0), 0)
    for (let b = 0; b < n; b++) {
      const label = labels.data[b]!
      if (label >= k) fail(`label ${label} of sample ${b} is outside 0..${k - 1}`)
      rank.data[b] = label < 0 ? -1 : rankOf(logits.data.subarray(b * k, (b + 1) * k), label)
      if (label < 0) continue
      for (let i = 0; i < k; i++) {
        const target = s / k + (i === label ? 1 - s : 0)
        loss.data[0]! -= (target * log.data[b * k + i]!) / valid
        diff.data[b * k + i] = (Math.exp(log.data[b * k + i]!) - target) / valid
      }
    }
    return [loss, diff, rank]
  },
}
