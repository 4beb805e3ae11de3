/** What a fusion pattern sees of a graph, and what it answers. */
import type { Graph } from '../../graph/graph.js'
import type { OpName } from '../../graph/op_table.js'
import type { Node, Tensor } from '../../graph/types.js'
import { type Parts, parted } from '../../turns.js'
import type { Rewriter } from '../rewrite.js'

/** The machine that a plan is made for; patterns may depend on it. */
export interface Target {
  readonly device: 'cpu' | 'cuda'
  /** Of a CPU: its instruction set as the addon reports it, e.g. "avx2", "avx3". */
  readonly isa?: string
}

/** Appends new nodes; where: in place of a removed node, or before all others in the prepare program. */
export interface Emission {
  readonly at: Node | 'prepare'
  run(rewriter: Rewriter): void
}

export interface Rewrite {
  /** Nodes that the new ones replace. */
  readonly removes: readonly Node[]
  readonly emits: readonly Emission[]
}

export interface Pattern {
  readonly name: string
  /** Whether the fused op pays off on the target. */
  applies(target: Target): boolean
  /** The rewrite that starts at `node`, or null. */
  match(node: Node, view: GraphView, target: Target): Rewrite | null
}

export class GraphView {
  private readonly readersOf = new Map<Tensor, Node[]>()
  private readonly makers = new Map<Tensor, Node>()
  private readonly claimed = new Set<Node>()

  private constructor() {}

  static readonly of = parted(function* (graph: Graph): Parts<GraphView> {
    const view = new GraphView()
    for (const node of graph.nodes) {
      for (const t of new Set(node.inputs)) if (t) view.readersOf.set(t, [...view.readers(t), node])
      for (const t of node.outputs) if (t) view.makers.set(t, node)
      yield
    }
    return view
  })

  /** Nodes belong to one rewrite at most. */
  claim(nodes: readonly Node[]): void {
    for (const node of nodes) this.claimed.add(node)
  }

  isFree(node: Node): boolean {
    return !this.claimed.has(node)
  }

  readers(t: Tensor): readonly Node[] {
    return this.readersOf.get(t) ?? []
  }

  maker(t: Tensor | null | undefined): Node | undefined {
    return t ? this.makers.get(t) : undefined
  }

  /** Whether `t` is read from outside the graph and must be made. */
  escapes(t: Tensor): boolean {
    return t.role !== 'activation'
  }

  /** The one node that reads `t`, if it is of this op and free, and nothing else needs `t`. */
  soleReader(t: Tensor, op: OpName): Node | undefined {
    const [reader, ...others] = this.readers(t)
    if (!reader || others.length > 0 || this.escapes(t) || reader.op !== op || !this.isFree(reader)) return undefined
    return reader.inputs.filter((each) => each === t).length === 1 ? reader : undefined
  }
}

/** Results and updates of a convolution that takes the statistics of its `dst` in place of the bn_stats `stats`. */
export const withStats = (rewriter: Rewriter, dst: Tensor, stats: Node) => ({
  into: {
    dst: rewriter.define(dst),
    mean: rewriter.define(stats.outputs[0]!),
    inv_std: rewriter.define(stats.outputs[1]!),
  },
  updates: stats.updates.map((t) => rewriter.to(t)),
})

/** The operand of an `add` that is not `t`. */
export const otherOperand = (node: Node, t: Tensor): Tensor => (node.inputs[0] === t ? node.inputs[1] : node.inputs[0])!
