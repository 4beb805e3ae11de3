/**
 * Squeeze-and-excitation: bn_act_pool (the gate's input) and bn_act (the gated tensor) both make act(bn(src)). Where only a 1x1
 * convolution reads the gated tensor, bn_act_pool stores act(bn(src)) in passing and the convolution multiplies by the gate
 * while it reads: one pass over src less. Behind `recompute`: the backward part must have its own gated tensor by then.
 */
import type { Graph } from '../graph/graph.js'
import type { Node } from '../graph/types.js'
import { parted } from '../turns.js'
import { GraphView } from './fuse_patterns/pattern.js'
import { Rewriter } from './rewrite.js'

interface Match {
  readonly pool: Node
  readonly gated: Node
  readonly convolution: Node
}

export const gateInConvolution = parted(function* (graph: Graph) {
  const view = yield* GraphView.of.parts(graph)
  const matches: Match[] = []
  for (const node of graph.nodes) {
    const match = matchAt(node, view)
    if (match) view.claim([match.pool])
    if (match) matches.push(match)
  }
  if (matches.length === 0) return graph
  const byPool = new Map(matches.map((m) => [m.pool, m]))
  const byConvolution = new Map(matches.map((m) => [m.convolution, m]))
  const removed = new Set(matches.map((m) => m.gated))
  const rewriter = yield* Rewriter.of.parts(graph)
  for (const node of graph.nodes) {
    yield
    if (removed.has(node)) continue
    const [pooling, reading] = [byPool.get(node), byConvolution.get(node)]
    if (pooling) rewriter.copy(node, { also: { dst: { of: pooling.gated.outputs[0]!, as: {} } } })
    else if (reading) rewriter.copy(node, { inputs: { gate: reading.gated.inputs[5]! } })
    else rewriter.copy(node)
  }
  return rewriter.graph
})

function matchAt(gated: Node, view: GraphView): Match | null {
  if (gated.op !== 'bn_act' || gated.backward || !gated.inputs[5] || gated.inputs[6] || gated.attrs['drop_rate']) return null
  const convolution = view.soleReader(gated.outputs[0]!, 'conv2d_stats')
  if (!convolution || convolution.inputs[2]) return null
  const pool = view
    .readers(gated.inputs[0]!)
    .find(
      (n) =>
        n.op === 'bn_act_pool' &&
        !n.backward &&
        view.isFree(n) &&
        !n.outputs[1] &&
        n.inputs.every((t, i) => t === gated.inputs[i]) &&
        n.attrs['act'] === gated.attrs['act'] &&
        n.attrs['batch_stats'] === gated.attrs['batch_stats'],
    )
  return pool ? { pool, gated, convolution } : null
}
