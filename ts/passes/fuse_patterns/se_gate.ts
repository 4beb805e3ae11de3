/** linear, activation, linear, sigmoid of squeeze-and-excitation: one op on [N, C] instead of four. */
import { actCode } from '../../graph/types.js'
import type { Pattern } from './pattern.js'

export const seGatePattern: Pattern = {
  name: 'se_gate',
  applies: () => true,
  match(reduce, view) {
    if (reduce.op !== 'linear' || !reduce.inputs[2]) return null
    const act = view.soleReader(reduce.outputs[0]!, 'activation')
    const expand = act && view.soleReader(act.outputs[0]!, 'linear')
    const sigmoid = expand?.inputs[2] && view.soleReader(expand.outputs[0]!, 'activation')
    if (!act || !expand || !sigmoid || sigmoid.attrs['act'] !== actCode('sigmoid')) return null
    if (expand.inputs[0] !== act.outputs[0] || expand.outputs[0]!.shape[1] !== reduce.inputs[0]!.shape[1]) return null
    return {
      removes: [reduce, act, expand, sigmoid],
      emits: [
        {
          at: sigmoid,
          run(rewriter) {
            const [pooled, weights0, bias0] = reduce.inputs.map((t) => rewriter.to(t!))
            const [weights1, bias1] = expand.inputs.slice(1).map((t) => rewriter.to(t!))
            const into = { hidden: rewriter.define(reduce.outputs[0]!), gate: rewriter.define(sigmoid.outputs[0]!) }
            const inputs = { pooled, weights0, bias0, weights1, bias1 }
            rewriter.graph.node('se_gate', inputs, { act: act.attrs['act']! }, { name: sigmoid.name, into })
          },
        },
      ],
    }
  },
}
