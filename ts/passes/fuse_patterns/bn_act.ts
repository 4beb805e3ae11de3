/**
 * bn_apply, activation, gate (channel_scale), drop_path and residual add in one pass over memory: bn_act. Where the activation
 * also feeds a global average pool, that becomes bn_act_pool, which reads the same src: the activation is never stored.
 */
import { actCode, type Node, type Tensor } from '../../graph/types.js'
import type { Rewriter } from '../rewrite.js'
import { type Emission, type GraphView, otherOperand, type Pattern } from './pattern.js'

/** What is done to the normalised tensor, node by node. */
interface Tail {
  readonly nodes: readonly Node[]
  readonly dst: Tensor
  readonly gate: Tensor | null
  readonly drop: Node | null
  readonly residual: Tensor | null
}

export const bnActPattern: Pattern = {
  name: 'bn_act',
  applies: () => true,
  match(bn, view) {
    if (bn.op !== 'bn_apply') return null
    const normalised = bn.outputs[0]!
    const activation = view.soleReader(normalised, 'activation')
    const head = activation ? [bn, activation] : [bn]
    const act = activation ? activation.attrs['act']! : actCode('identity')
    const z = activation ? activation.outputs[0]! : normalised
    const { pool, scale, onlyThese } = readersOf(z, view)

    if (pool && !scale && onlyThese) return { removes: [...head, pool], emits: [emitPool(bn, pool, act)] }
    if (pool && scale && onlyThese) {
      const tail = tailOf(scale.outputs[0]!, view, scale)
      return {
        removes: [...head, pool, ...tail.nodes],
        emits: [emitPool(bn, pool, act), emitBnAct(bn, act, [...head, ...tail.nodes], tail)],
      }
    }
    const tail = scale && onlyThese && !pool ? tailOf(scale.outputs[0]!, view, scale) : tailOf(z, view)
    const nodes = [...head, ...tail.nodes]
    return { removes: nodes, emits: [emitBnAct(bn, act, nodes, tail)] }
  },
}

function readersOf(z: Tensor, view: GraphView): { pool: Node | undefined; scale: Node | undefined; onlyThese: boolean } {
  const readers = view.readers(z)
  const pool = readers.find((n) => n.op === 'global_avg_pool' && view.isFree(n))
  const scale = readers.find((n) => n.op === 'channel_scale' && n.inputs[0] === z && view.isFree(n))
  const onlyThese = !view.escapes(z) && readers.length > 0 && readers.every((n) => n === pool || n === scale)
  return { pool, scale, onlyThese }
}

function tailOf(start: Tensor, view: GraphView, scale?: Node): Tail {
  const nodes: Node[] = scale ? [scale] : []
  let dst = start
  const drop = view.soleReader(dst, 'drop_path') ?? null
  if (drop) {
    nodes.push(drop)
    dst = drop.outputs[0]!
  }
  const add = view.soleReader(dst, 'add')
  const residual = add ? otherOperand(add, dst) : null
  if (add) {
    nodes.push(add)
    dst = add.outputs[0]!
  }
  return { nodes, dst, gate: scale?.inputs[1] ?? null, drop, residual }
}

/** The five operands of every normalisation. */
function operands(bn: Node, rewriter: Rewriter): Record<string, Tensor> {
  const names = ['src', 'mean', 'inv_std', 'scale', 'shift']
  return Object.fromEntries(names.map((name, i) => [name, rewriter.to(bn.inputs[i]!)]))
}

function emitPool(bn: Node, pool: Node, act: number): Emission {
  return {
    at: pool,
    run(rewriter) {
      const attrs = { act, batch_stats: bn.attrs['batch_stats']! }
      const inputs = operands(bn, rewriter)
      rewriter.graph.node('bn_act_pool', inputs, attrs, { name: pool.name, into: { pooled: rewriter.define(pool.outputs[0]!) } })
    },
  }
}

/** In place of the last of the nodes, where gate and residual are there. */
function emitBnAct(bn: Node, act: number, nodes: readonly Node[], tail: Tail): Emission {
  return {
    at: nodes.at(-1)!,
    run(rewriter) {
      const inputs = {
        ...operands(bn, rewriter),
        gate: tail.gate && rewriter.to(tail.gate),
        residual: tail.residual && rewriter.to(tail.residual),
      }
      const attrs = {
        act,
        drop_rate: tail.drop?.attrs['drop_rate'] ?? 0,
        rng_stream: tail.drop?.attrs['rng_stream'] ?? 0,
        batch_stats: bn.attrs['batch_stats']!,
      }
      rewriter.graph.node('bn_act', inputs, attrs, { name: bn.name, into: { dst: rewriter.define(tail.dst) } })
    },
  }
}
