/** Prepare op: BN with constant statistics folded into the weights and bias of the convolution before it. */
import { at, attr, expectFlag, expectRank, fail, refTensor, show, spec } from './check.js'
import type { OpDef } from './def.js'

/** Per output channel: folded_weights = weights * scale / sqrt(running_var + eps), folded_bias = shift - running_mean * that factor. */
export const foldBnOp: OpDef = {
  name: 'fold_bn',
  infer(inputs, attrs) {
    const weights = at(inputs, 0)
    expectFlag(attrs, 'depthwise')
    const depthwise = attr(attrs, 'depthwise') === 1
    expectRank('weights', weights, depthwise ? 3 : 4)
    const channels = weights.shape[depthwise ? 2 : 0]!
    for (const [i, port] of ['scale', 'shift', 'running_mean', 'running_var'].entries()) {
      const t = at(inputs, i + 1)
      if (t.shape.join() !== `${channels}`) fail(`${port} ${show(t)} must be f32[${channels}] as weights is ${show(weights)}`)
    }
    return [spec(weights.shape, 'f32'), spec([channels], 'f32')]
  },
  reference(inputs, attrs) {
    const [weights, scale, shift, mean, variance] = [0, 1, 2, 3, 4].map((i) => at(inputs, i))
    const eps = attr(attrs, 'eps')
    const channels = scale!.data.length
    const factor = scale!.data.map((s, i) => s / Math.sqrt(variance!.data[i]! + eps))
    const perOutput = weights!.data.length / channels
    const channel = attr(attrs, 'depthwise') === 1 ? (i: number) => i % channels : (i: number) => Math.floor(i / perOutput)
    return [
      refTensor(
        weights!.shape,
        weights!.data.map((w, i) => w * factor[channel(i)]!),
      ),
      refTensor(
        [channels],
        shift!.data.map((b, i) => b - mean!.data[i]! * factor[i]!),
      ),
    ]
  },
}
