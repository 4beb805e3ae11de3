/** Removes nodes whose results nobody wants. */
import type { Graph } from '../graph/graph.js'
import type { Node, Tensor } from '../graph/types.js'
import { parted } from '../turns.js'
import { Rewriter } from './rewrite.js'

/** Whether a node matters by itself: it writes state, or what is read from outside the step. */
const isRoot = (node: Node): boolean =>
  node.updates.length > 0 || node.op === 'ema_update' || node.outputs.some((t) => t?.role === 'output' || t?.role === 'gradient')

/** A new graph of the nodes that updates, gradients, outputs and the tensors named in `keep` depend on. */
export const eliminateDead = parted(function* (graph: Graph, keep: readonly string[] = []) {
  const kept = new Set(keep)
  const wanted = new Set<Tensor>()
  const live = new Set<Node>()
  for (const node of graph.nodes.toReversed()) {
    if (!isRoot(node) && !node.outputs.some((t) => t && (wanted.has(t) || kept.has(t.name)))) continue
    live.add(node)
    for (const t of node.inputs) if (t) wanted.add(t)
  }
  const rewriter = yield* Rewriter.of.parts(graph)
  for (const node of graph.nodes) {
    if (live.has(node)) rewriter.copy(node)
    yield
  }
  return rewriter.graph
})
