/** Building a new graph from an old one: what every pass that is not an append is made of. */
import { Graph } from '../graph/graph.js'
import { OP_TABLE } from '../graph/op_table.js'
import type { Node, Tensor } from '../graph/types.js'
import { type Parts, parted } from '../turns.js'

/** Holds the new graph and the map from old tensors to new ones. Names are kept; tensors that nobody makes vanish. */
export class Rewriter {
  readonly graph: Graph
  private readonly map = new Map<Tensor, Tensor>()

  private constructor(readonly source: Graph) {
    this.graph = new Graph(source.name)
  }

  /** The new graph starts with all inputs, parameters and buffers, in their order, used or not. */
  static readonly of = parted(function* (source: Graph): Parts<Rewriter> {
    const rewriter = new Rewriter(source)
    for (const t of source.tensors) {
      if (t.role === 'input' || t.role === 'parameter' || t.role === 'buffer') rewriter.define(t)
      yield
    }
    return rewriter
  })

  /** The new tensor of an old one that has been made already. */
  to(t: Tensor): Tensor {
    const mapped = this.map.get(t)
    if (!mapped) throw new Error(`${t.name} is read before it is made`)
    return mapped
  }

  /** Makes the twin of an old tensor, to be written by a new node. */
  define(old: Tensor, changes: Partial<Pick<Tensor, 'name' | 'role'>> = {}): Tensor {
    const { id: _id, name, shape, dtype, role, of, ...more } = old
    const t = this.graph.tensor(changes.name ?? name, shape, dtype, changes.role ?? role, {
      ...more,
      ...(of && { of: this.to(of) }),
    })
    this.map.set(old, t)
    return t
  }

  /** Inputs of an old node as `Graph.node` takes them. */
  inputs(node: Node): Record<string, Tensor | Tensor[]> {
    const ports = OP_TABLE[node.op].inputs
    const result: Record<string, Tensor | Tensor[]> = {}
    ports.forEach((port, i) => {
      const t = node.inputs[i]
      if (port.variadic) result[port.name] = node.inputs.slice(i).map((each) => this.to(each!))
      else if (t) result[port.name] = this.to(t)
    })
    return result
  }

  /**
   * Appends the node as it is, or marked anew. Its outputs become new twins of the old ones. `also`: optional outputs by port
   * that the old node did not make, each a twin of a tensor that another node did. `inputs`: optional inputs that it did not read,
   * tensors of the old graph.
   */
  copy(
    node: Node,
    changes: Partial<Pick<Node, 'name' | 'backward' | 'recomputed'>> & {
      output?: (t: Tensor) => Partial<Pick<Tensor, 'name' | 'role'>>
      also?: Readonly<Record<string, { of: Tensor; as: Partial<Pick<Tensor, 'name' | 'role'>> }>>
      inputs?: Readonly<Record<string, Tensor>>
    } = {},
  ): void {
    const inputs = this.inputs(node)
    for (const [port, t] of Object.entries(changes.inputs ?? {})) inputs[port] = this.to(t)
    const into: Record<string, Tensor> = {}
    OP_TABLE[node.op].outputs.forEach((port, i) => {
      const t = node.outputs[i]
      if (t) into[port.name] = this.define(t, changes.output?.(t))
    })
    for (const [port, { of, as }] of Object.entries(changes.also ?? {})) into[port] = this.define(of, as)
    this.graph.node(node.op, inputs, node.attrs, {
      name: changes.name ?? node.name,
      updates: node.updates.map((t) => this.to(t)),
      prepare: node.prepare,
      backward: changes.backward ?? node.backward,
      recomputed: changes.recomputed ?? node.recomputed,
      into,
    })
  }
}

/** The same graph in which the tensors of these names have role `output`: the host reads them after a step. */
export const markOutputs = parted(function* (graph: Graph, names: readonly string[]) {
  for (const name of names) graph.find(name)
  const rewriter = yield* Rewriter.of.parts(graph)
  for (const node of graph.nodes) {
    rewriter.copy(node, { output: (t) => (names.includes(t.name) ? { role: 'output' } : {}) })
    yield
  }
  return rewriter.graph
})
