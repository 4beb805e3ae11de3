/** Recompute or save: which forward results the backward part makes again instead of keeping them through the step. */
import type { Graph } from '../graph/graph.js'
import type { Node, Tensor } from '../graph/types.js'
import { parted } from '../turns.js'
import { Rewriter } from './rewrite.js'

/**
 * - `none`: everything that the backward part reads is kept
 * - `cheap`: results of BN + activation are made again, just before their first use there, from the convolution result that is
 *   kept anyway. It costs one read and one write of tensors of a block and frees their memory: EfficientNet-B0 at 224 px
 *   in FP32 keeps 29 MB an image instead of 40.
 */
export type RecomputePolicy = 'none' | 'cheap'

/** With a residual, making it again would need the block's input again, and so on back to the stem: those stay. */
const isCheap = (node: Node): boolean => node.op === 'bn_act' && node.inputs[6] === null && !node.backward

/**
 * bn_act_bwd_sums over what `maker` normalises: it passes over src and has act(bn(src)) in registers, so it can store the gated
 * activation in passing. The nodes that want it sooner must be able to wait: none of the nodes up to there needs them.
 */
function sumsThatCanMake(maker: Node, graph: Graph): { sums: Node; waiting: Node[] } | undefined {
  const dst = maker.outputs[0]!
  const sums = graph.nodes.find(
    (n) =>
      n.op === 'bn_act_bwd_sums' &&
      n.backward &&
      maker.inputs[5] !== null &&
      n.inputs.slice(1, 7).every((t, i) => t === maker.inputs[i]) &&
      ['act', 'drop_rate', 'rng_stream'].every((name) => n.attrs[name] === maker.attrs[name]),
  )
  if (!sums) return undefined
  const between = graph.nodes.slice(0, sums.id + 1).filter((n) => n.backward)
  const waiting = between.filter((n) => n.inputs.includes(dst))
  const made = new Set(waiting.flatMap((n) => n.outputs))
  const canWait =
    waiting.every((n) => n !== sums && n.updates.length === 0) && !between.some((n) => n.inputs.some((t) => t && made.has(t)))
  return canWait ? { sums, waiting } : undefined
}

/** A new graph with the repeated nodes marked `recomputed`; where bn_act_bwd_sums can give the result, it does. */
export const recompute = parted(function* (graph: Graph, policy: RecomputePolicy) {
  const candidates = new Map<Tensor, Node>()
  const inPassing = new Map<Node, { t: Tensor; waiting: Node[] }>()
  const late = new Set<Node>()
  if (policy === 'cheap') {
    for (const node of graph.nodes) {
      if (!isCheap(node)) continue
      yield
      const t = node.outputs[0]!
      const found = graph.nodes.some((n) => n.backward && n.inputs.includes(t)) ? sumsThatCanMake(node, graph) : undefined
      if (found) {
        inPassing.set(found.sums, { t, waiting: found.waiting })
        for (const each of found.waiting) late.add(each)
      } else candidates.set(t, node)
    }
  }
  const rewriter = yield* Rewriter.of.parts(graph)
  const again = (t: Tensor) => ({ name: `${t.name}:again`, role: 'activation' as const })
  const emit = (node: Node): void => {
    if (node.backward) {
      for (const t of new Set(node.inputs)) {
        const maker = t && candidates.get(t)
        if (!maker) continue
        candidates.delete(t)
        rewriter.copy(maker, { name: `${maker.name}.again`, backward: true, recomputed: true, output: () => again(t) })
      }
    }
    const making = inPassing.get(node)
    rewriter.copy(node, making && { also: { dst: { of: making.t, as: again(making.t) } } })
    for (const each of making?.waiting ?? []) emit(each)
  }
  for (const node of graph.nodes) {
    if (!late.has(node)) emit(node)
    yield
  }
  return rewriter.graph
})
