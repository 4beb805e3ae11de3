/** Random graphs of the ops that passes rewrite: chains as networks have them, with detours and taps that must block a rewrite. */
import { Graph } from '../../ts/graph/graph.js'
import { interpret } from '../../ts/graph/interpreter.js'
import { actCode, type Tensor } from '../../ts/graph/types.js'
import { verify } from '../../ts/graph/verify.js'
import { autodiff } from '../../ts/passes/index.js'
import { anyParam, fillBy, maxAbs, maxDifference, networkValues, uniform } from '../graph/values.js'

const SHAPE = [3, 3, 3, 4]
const ACTS = ['silu', 'relu6', 'sigmoid'].map((act) => actCode(act as 'silu'))

class Generator {
  readonly graph: Graph
  private readonly next: () => number
  private readonly images: Tensor[] = []
  private streams = 0

  constructor(
    seed: number,
    private readonly mode: 'train' | 'eval',
  ) {
    this.graph = new Graph(`random ${seed}`)
    this.next = uniform(seed * 7919)
    for (let i = 0; i < 10; i++) this.next()
    this.images.push(this.graph.input('images', SHAPE, 'f32'))
  }

  chance(p: number): boolean {
    return (this.next() + 1) / 2 < p
  }

  private index(count: number): number {
    return Math.min(count - 1, Math.floor(((this.next() + 1) / 2) * count))
  }

  /** Mostly the newest tensor, so that chains form. */
  private any(): Tensor {
    return this.chance(0.85) ? this.images.at(-1)! : this.images[this.index(this.images.length)]!
  }

  private param(shape: number[]): Tensor {
    const name = `p${this.graph.tensors.length}`
    return this.graph.parameter(
      name,
      shape,
      { ...anyParam(shape), layout: shape.length === 3 ? 'hwc' : 'vector' },
      this.chance(0.8),
    )
  }

  /** A tenth of the tensors is also read from outside. */
  private add(op: Parameters<Graph['node']>[0], inputs: Record<string, Tensor>, attrs: Record<string, number>): Tensor {
    const role = this.chance(0.1) ? 'output' : 'activation'
    const t = this.graph.node(op, inputs, attrs, { name: `${op}_${this.graph.nodes.length}`, role })['dst']!
    if (t.shape.length === 4) this.images.push(t)
    return t
  }

  conv(src = this.any()): Tensor {
    const k = this.chance(0.5) ? 3 : 1
    const pad = (k - 1) / 2
    const attrs = { stride: 1, pad_t: pad, pad_l: pad, pad_b: pad, pad_r: pad }
    if (this.chance(0.4)) return this.add('depthwise_conv2d', { src, weights: this.param([k, k, 4]) }, attrs)
    return this.add('conv2d', { src, weights: this.param([4, k, k, 4]) }, attrs)
  }

  norm(src = this.any()): Tensor {
    const c = [4]
    const buffer = (kind: 'bn_mean' | 'bn_var') => this.graph.buffer(`b${this.graph.tensors.length}`, c, { ...anyParam(c), kind })
    const [mean, variance] = [buffer('bn_mean'), buffer('bn_var')]
    const name = `stats_${this.graph.nodes.length}`
    const batch = this.mode === 'train' && this.chance(0.7)
    const stats: Record<string, Tensor> = batch
      ? this.graph.node('bn_stats', { src }, { eps: 0.01, momentum: 0.1 }, { name, updates: [mean, variance] })
      : { mean, ...this.graph.node('bn_inv_std', { var: variance }, { eps: 0.01 }, { name }) }
    const [scale, shift] = [this.param(c), this.param(c)]
    return this.add(
      'bn_apply',
      { src, mean: stats['mean']!, inv_std: stats['inv_std']!, scale, shift },
      { batch_stats: batch ? 1 : 0 },
    )
  }

  act(src = this.any()): Tensor {
    return this.add('activation', { src }, { act: ACTS[this.index(ACTS.length)]! })
  }

  gate(src = this.any()): Tensor {
    const pooled = this.add('global_avg_pool', { src: this.chance(0.8) ? src : this.any() }, {})
    const hidden = this.add('linear', { src: pooled, weights: this.param([2, 4]), bias: this.param([2]) }, {})
    const inner = this.add('activation', { src: hidden }, { act: ACTS[0]! })
    const logits = this.add('linear', { src: inner, weights: this.param([4, 2]), bias: this.param([4]) }, {})
    const gate = this.add('activation', { src: logits }, { act: actCode(this.chance(0.8) ? 'sigmoid' : 'silu') })
    return this.add('channel_scale', { src, gate }, {})
  }

  drop(src = this.any()): Tensor {
    if (this.mode === 'eval') return src
    return this.add('drop_path', { src }, { drop_rate: 0.4, rng_stream: this.streams++ })
  }

  sum(src = this.any()): Tensor {
    const other = this.images[this.index(this.images.length)]!
    return this.chance(0.5) ? this.add('add', { src0: src, src1: other }, {}) : this.add('add', { src0: other, src1: src }, {})
  }

  /** One block of a network, each part present or not. */
  block(): void {
    let x = this.norm(this.conv())
    if (this.chance(0.7)) x = this.act(x)
    if (this.chance(0.5)) x = this.gate(x)
    if (this.chance(0.4)) x = this.norm(this.conv(x))
    if (this.chance(0.4)) x = this.drop(x)
    if (this.chance(0.5)) this.sum(x)
  }
}

export function randomGraph(seed: number, mode: 'train' | 'eval'): Graph {
  const g = new Generator(seed, mode)
  const steps = [() => g.conv(), () => g.norm(), () => g.act(), () => g.gate(), () => g.drop(), () => g.sum()]
  for (let i = 0; i < 4; i++) {
    g.block()
    if (g.chance(0.5)) steps[i % steps.length]!()
  }
  const last = g.graph.nodes.at(-1)!.outputs[0]!
  if (last.role !== 'output')
    g.graph.node('activation', { src: last }, { act: actCode('identity') }, { name: 'end', role: 'output' })
  return g.graph
}

/** Appends gradients of a random weighting of all outputs. */
export function differentiate(graph: Graph): Graph {
  const outputs = graph.tensors.filter((t) => t.role === 'output')
  autodiff(graph, new Map(outputs.map((t) => [t, graph.input(`seed:${t.name}`, t.shape, t.dtype)])))
  verify(graph)
  return graph
}

/** The same values for graphs whose inputs, parameters and buffers have the same names. */
export function valuesFor(graph: Graph): Map<string, Float64Array> {
  const values = networkValues(graph, 5)
  const next = uniform(6)
  for (const t of graph.tensors) if (t.role === 'input' && t.dtype === 'f32') values.set(t.name, fillBy(t.shape, next))
  return values
}

/** Runs both and compares outputs, gradients and buffers; the tolerance is relative to the largest value of their kind. */
export function expectEqual(before: Graph, after: Graph, values: ReadonlyMap<string, Float64Array>, tolerance = 1e-12): void {
  verify(before)
  verify(after)
  const seen = (graph: Graph) => graph.tensors.filter((t) => ['output', 'gradient', 'buffer'].includes(t.role))
  const names = (graph: Graph) =>
    seen(graph)
      .map((t) => t.name)
      .sort()
      .join('\n')
  if (names(before) !== names(after)) throw new Error(`other results:\n${names(before)}\nthan:\n${names(after)}`)
  const scalars = { seed: 9, step: 4 }
  const [a, b] = [before, after].map((graph) => interpret(graph, { values, scalars }))
  const largest = new Map<string, number>()
  for (const t of seen(before)) largest.set(t.role, Math.max(largest.get(t.role) ?? 0, maxAbs(a!.get(t.name)!)))
  for (const t of seen(before)) {
    const difference = maxDifference(a!.get(t.name)!, b!.get(t.name)!)
    // Some gradients are zero but for rounding (a BN shift before another BN), hence the second term.
    const allowed = tolerance * (maxAbs(a!.get(t.name)!) + largest.get(t.role)!)
    if (!(difference <= allowed)) throw new Error(`${before.name}: ${t.name} differs by ${difference}, allowed ${allowed}`)
  }
}
