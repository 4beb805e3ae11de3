/** The graph in which what convolutions of uint8 images normalise on the way in is a tensor that is stored. */
import type { Graph } from '../../ts/graph/graph.js'
import type { OpName } from '../../ts/graph/op_table.js'
import { actCode, type DType, type Node, type Tensor } from '../../ts/graph/types.js'
import { Rewriter } from '../../ts/passes/rewrite.js'

const isNorm = (name: string): boolean => /^(mean|std)\d$/.test(name)
const entries = (attrs: Node['attrs'], norm: boolean) =>
  Object.fromEntries(Object.entries(attrs).filter(([name]) => isNorm(name) === norm))

export function withStoredInput(graph: Graph, dtype: DType): Graph {
  const rewriter = Rewriter.of(graph)
  let images: Tensor | undefined
  for (const node of graph.nodes) {
    if (!node.op.startsWith('input_conv2d')) {
      rewriter.copy(node)
      continue
    }
    const { src, ...inputs } = rewriter.inputs(node) as Record<string, Tensor>
    images ??= rewriter.graph.node('input_normalize', { src: src! }, entries(node.attrs, true), { name: 'stored', dtype })['dst']!
    const op = node.op.slice('input_'.length) as OpName
    const ports = { conv2d_stats: ['dst', 'mean', 'inv_std'], conv2d_bwd_weights: ['diff_weights'] }[op as string] ?? ['dst']
    const attrs = { ...entries(node.attrs, false), ...(op === 'conv2d_stats' && { src_act: actCode('identity') }) }
    const into = Object.fromEntries(ports.map((port, i) => [port, rewriter.define(node.outputs[i]!)]))
    const { name, backward } = node
    rewriter.graph.node(op, { ...inputs, src: images }, attrs, {
      name,
      backward,
      updates: node.updates.map((t) => rewriter.to(t)),
      into,
    })
  }
  return rewriter.graph
}
