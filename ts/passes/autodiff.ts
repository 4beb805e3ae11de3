/** Reverse-mode differentiation as a graph transform: appends the backward part to the graph it is given. */
import { EffnetError } from '../errors.js'
import type { Graph } from '../graph/graph.js'
import type { EmitOptions, GradContext, HandedNode } from '../graph/ops/def.js'
import { opDef } from '../graph/ops/index.js'
import type { Node, Tensor } from '../graph/types.js'
import { type Parts, parted } from '../turns.js'

export interface AutodiffOptions {
  /** Parameters whose gradients are wanted. Default: those marked trainable. */
  trainable?: (parameter: Tensor) => boolean
}

/**
 * Appends to `graph` the nodes that make the gradient of `root` with respect to every wanted parameter that it depends on, and
 * returns these gradients (role `gradient`, FP32, `of` the parameter). Nothing else is computed: no gradient of images, none
 * behind the last trainable parameter.
 *
 * `root` is a loss made by an op that makes its own gradient (softmax_cross_entropy), or a map from tensors to the gradients
 * they start with. Contributions of several readers are summed by `add` in reverse order of the readers.
 */
export const autodiff = parted(
  (graph: Graph, root: Tensor | ReadonlyMap<Tensor, Tensor>, options: AutodiffOptions = {}): Parts<Map<Tensor, Tensor>> =>
    new Autodiff(graph, root, options.trainable ?? ((p) => p.trainable ?? false)).run(),
)

class Autodiff {
  private readonly forward: readonly Node[]
  /** Tensors that depend on a wanted parameter, and these. */
  private readonly needed = new Set<Tensor>()
  private readonly readers = new Map<Tensor, Node[]>()
  /** Readers on the way to the root that have not been differentiated yet. */
  private readonly pending = new Map<Tensor, number>()
  private readonly diffs = new Map<Tensor, Tensor>()
  private readonly gradients = new Map<Tensor, Tensor>()
  private readonly handed = new Map<Node, HandedNode>()
  private rootNode: Node | undefined

  constructor(
    private readonly graph: Graph,
    private readonly root: Tensor | ReadonlyMap<Tensor, Tensor>,
    trainable: (parameter: Tensor) => boolean,
  ) {
    this.forward = [...graph.nodes]
    for (const p of graph.parameters) if (trainable(p)) this.needed.add(p)
  }

  private *findNeeded(): Parts<void> {
    const makers = new Map<Tensor, Node>()
    for (const node of this.forward) {
      yield
      for (const t of new Set(node.inputs)) if (t) this.readers.set(t, [...(this.readers.get(t) ?? []), node])
      const differentiable = node.inputs.some((t) => t && this.needed.has(t)) && opDef(node.op).grad
      for (const t of node.outputs) {
        if (!t) continue
        makers.set(t, node)
        if (differentiable) this.needed.add(t)
      }
    }
    const roots = isSeeds(this.root) ? [...this.root.keys()] : [this.root]
    if (!isSeeds(this.root)) this.rootNode = makers.get(this.root)
    yield* this.countReaders(roots, makers)
  }

  *run(): Parts<Map<Tensor, Tensor>> {
    yield* this.findNeeded()
    if (isSeeds(this.root)) for (const [t, diff] of this.root) this.contribute(t, diff)
    for (const node of this.forward.toReversed()) {
      yield
      const diffOutputs = node.outputs.map((t) => (t && this.diffs.get(t)) ?? null)
      const inputs = new Set(node.inputs.filter((t) => t !== null))
      for (const t of inputs) if (this.pending.has(t)) this.pending.set(t, this.pending.get(t)! - 1)
      if (node !== this.rootNode && !this.handed.has(node) && !diffOutputs.some(Boolean)) continue
      if (![...inputs].some((t) => this.needed.has(t))) continue
      this.differentiate(node, diffOutputs)
    }
    return this.finish()
  }

  private *countReaders(roots: readonly Tensor[], makers: ReadonlyMap<Tensor, Node>): Parts<void> {
    const reached = new Set<Node>()
    const todo = roots.flatMap((t) => makers.get(t) ?? [])
    for (let node = todo.pop(); node; node = todo.pop()) {
      if (reached.has(node)) continue
      yield
      reached.add(node)
      for (const t of new Set(node.inputs)) {
        if (!t) continue
        this.pending.set(t, (this.pending.get(t) ?? 0) + 1)
        const maker = makers.get(t)
        if (maker) todo.push(maker)
      }
    }
  }

  private differentiate(node: Node, diffOutputs: readonly (Tensor | null)[]): void {
    const { grad } = opDef(node.op)
    if (!grad) throw new EffnetError('EFF_INTERNAL', `${node.op} "${node.name}" has no gradient rule`)
    const diffs = grad(this.context(node, diffOutputs))
    node.inputs.forEach((t, i) => {
      const diff = diffs[i]
      if (t && diff && this.needed.has(t)) this.contribute(t, diff)
    })
  }

  private context(node: Node, diffOutputs: readonly (Tensor | null)[]): GradContext {
    return {
      node,
      diffOutputs,
      isRoot: node === this.rootNode,
      handed: this.handed.get(node) ?? null,
      wants: (i) => {
        const t = node.inputs[i]
        return t != null && this.needed.has(t)
      },
      target: (i) => {
        const t = node.inputs[i]
        const readOnce = node.inputs.filter((each) => each === t).length === 1
        return t && readOnce && this.isLastContribution(t) && !this.diffs.has(t) ? this.gradientOf(t) : undefined
      },
      emit: (op, suffix, inputs, attrs, options: EmitOptions = {}) =>
        this.graph.node(op, inputs, attrs, { name: `${node.name}.${suffix}`, backward: true, ...options }),
      consumers: (t) => this.readers.get(t) ?? [],
      handTo: (earlier, made) => {
        if (this.handed.has(earlier)) return false
        this.handed.set(earlier, { node, diffOutputs, made })
        return true
      },
    }
  }

  private isLastContribution(t: Tensor): boolean {
    return t.role === 'parameter' && this.needed.has(t) && (this.pending.get(t) ?? 0) === 0
  }

  private gradientOf(p: Tensor): Tensor {
    let gradient = this.gradients.get(p)
    if (!gradient) {
      gradient = this.graph.tensor(`grad:${p.name}`, p.shape, 'f32', 'gradient', { of: p })
      this.gradients.set(p, gradient)
    }
    return gradient
  }

  private contribute(t: Tensor, diff: Tensor): void {
    const before = this.diffs.get(t)
    if (!before) {
      this.diffs.set(t, diff)
      return
    }
    const into = this.isLastContribution(t) ? { dst: this.gradientOf(t) } : {}
    const sum = this.graph.node('add', { src0: before, src1: diff }, {}, { name: `${t.name}.diff_sum`, backward: true, into })
    this.diffs.set(t, sum['dst']!)
  }

  /** A parameter's gradient that is also something else (another tensor's gradient, a seed) is copied to its place. */
  private finish(): Map<Tensor, Tensor> {
    for (const p of this.graph.parameters) {
      const diff = this.diffs.get(p)
      if (!diff || !this.needed.has(p) || diff === this.gradients.get(p)) continue
      const into = { dst: this.gradientOf(p) }
      this.graph.node('cast', { src: diff }, {}, { name: `${p.name}.diff_copy`, backward: true, into })
    }
    return this.gradients
  }
}

const isSeeds = (root: Tensor | ReadonlyMap<Tensor, Tensor>): root is ReadonlyMap<Tensor, Tensor> => root instanceof Map
