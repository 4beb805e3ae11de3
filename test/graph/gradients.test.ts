/** Every gradient rule against central finite differences in float64, on small odd shapes. */
import { describe, expect, it } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import { interpret } from '../../ts/graph/interpreter.js'
import { OP_NAMES, type OpName } from '../../ts/graph/op_table.js'
import { opDef } from '../../ts/graph/ops/index.js'
import { ACTIVATIONS, actCode, type Shape, type Tensor } from '../../ts/graph/types.js'
import { verify } from '../../ts/graph/verify.js'
import { autodiff } from '../../ts/passes/index.js'
import { anyParam, fillBy, maxAbs, maxDifference, uniform } from './values.js'

const STEP = 1e-5
const SCALARS = { seed: 77, step: 3 }

interface Case {
  name: string
  /** Ops whose rule the case exercises. */
  ops: OpName[]
  build: (b: Builder) => Tensor
}

/** Every operand is a parameter, so that every gradient is made. */
class Builder {
  readonly graph = new Graph('case')

  param(name: string, shape: Shape): Tensor {
    return this.graph.parameter(name, shape, anyParam(shape))
  }

  node(
    op: OpName,
    inputs: Record<string, Tensor | null>,
    attrs: Record<string, number>,
    options: object = {},
  ): Record<string, Tensor> {
    return this.graph.node(op, inputs, attrs, { name: op, ...options })
  }

  /** src, mean, inv_std, scale, shift */
  norm(src: Tensor, batchStats: boolean): Record<string, Tensor> {
    const c = [src.shape[3]!]
    const updates = [this.graph.buffer('rm', c, anyParam(c)), this.graph.buffer('rv', c, anyParam(c))]
    const { mean, inv_std }: Record<string, Tensor | undefined> = batchStats
      ? this.node('bn_stats', { src }, { eps: 1e-3, momentum: 0.1 }, { updates })
      : { mean: updates[0], ...this.node('bn_inv_std', { var: updates[1]! }, { eps: 1e-3 }) }
    return { src, mean: mean!, inv_std: inv_std!, scale: this.param('scale', c), shift: this.param('shift', c) }
  }
}

const conv = (stride: number, [t, l, b, r]: [number, number, number, number]) => ({
  stride,
  pad_t: t,
  pad_l: l,
  pad_b: b,
  pad_r: r,
})

const CONVS: [string, [number, number], ReturnType<typeof conv>][] = [
  ['1x1', [1, 1], conv(1, [0, 0, 0, 0])],
  ['3x3, same', [3, 3], conv(1, [1, 1, 1, 1])],
  ['3x3, stride 2, asymmetric', [3, 3], conv(2, [0, 0, 1, 1])],
  ['5x3, stride 2, uneven padding', [5, 3], conv(2, [2, 0, 1, 2])],
  ['1x1, stride 2', [1, 1], conv(2, [0, 0, 0, 0])],
  ['2x2, stride 3, rows unread', [2, 2], conv(3, [0, 1, 0, 0])],
]

const convCases: Case[] = CONVS.flatMap(([name, [kh, kw], attrs]) => [
  {
    name: `conv2d ${name}`,
    ops: ['conv2d'],
    build: (b) => b.node('conv2d', { src: b.param('src', [2, 7, 6, 3]), weights: b.param('w', [5, kh, kw, 3]) }, attrs)['dst']!,
  },
  {
    name: `depthwise_conv2d ${name}`,
    ops: ['depthwise_conv2d'],
    build: (b) =>
      b.node('depthwise_conv2d', { src: b.param('src', [2, 7, 6, 3]), weights: b.param('w', [kh, kw, 3]) }, attrs)['dst']!,
  },
])

const convStatsCase: Case = {
  name: 'conv2d_stats',
  ops: ['conv2d_stats'],
  build: (b) => {
    const updates = [b.graph.buffer('rm', [4], anyParam([4])), b.graph.buffer('rv', [4], anyParam([4]))]
    const inputs = { src: b.param('src', [2, 3, 4, 3]), weights: b.param('w', [4, 1, 1, 3]) }
    return b.node('conv2d_stats', inputs, { ...conv(1, [0, 0, 0, 0]), eps: 1e-3, momentum: 0.1, src_act: 0 }, { updates })['dst']!
  },
}

const running = (b: Builder, name: string) => ['rm', 'rv'].map((kind) => b.graph.buffer(`${name}.${kind}`, [2], anyParam([2])))

const statsCases: Case[] = [
  {
    name: 'depthwise_conv2d_stats',
    ops: ['depthwise_conv2d_stats'],
    build: (b) => {
      const inputs = { src: b.param('src', [2, 5, 4, 2]), weights: b.param('w', [3, 3, 2]) }
      const attrs = { ...conv(1, [1, 1, 1, 1]), eps: 1e-3, momentum: 0.1, src_act: 0 }
      return b.node('depthwise_conv2d_stats', inputs, attrs, { updates: running(b, 'dst') })['dst']!
    },
  },
  ...([1, 2] as const).map((stride) => ({
    name: `depthwise_conv2d_stats of a normalised source, stride ${stride}`,
    ops: ['bn_stats', 'depthwise_conv2d_stats'] as OpName[],
    build: (b: Builder) => {
      const src = b.param('src', [2, 5, 6, 2])
      const bn = { eps: 1e-3, momentum: 0.1 }
      const { mean, inv_std } = b.node('bn_stats', { src }, bn, { updates: running(b, 'src') })
      const norm = { src_mean: mean!, src_inv_std: inv_std!, src_scale: b.param('scale', [2]), src_shift: b.param('shift', [2]) }
      const inputs = { src, weights: b.param('w', [3, 3, 2]), ...norm }
      const attrs = { ...conv(stride, [1, 0, 1, 1]), ...bn, src_act: actCode('silu') }
      return b.node('depthwise_conv2d_stats', inputs, attrs, { updates: running(b, 'dst') })['dst']!
    },
  })),
]

const actCases: Case[] = ACTIVATIONS.map((act) => ({
  name: `activation ${act}`,
  ops: ['activation'],
  // Times 8, so that both ends of relu6 are met.
  build: (b) => {
    const src = b.param('src', [2, 3, 3, 4])
    const wide = b.node('channel_scale', { src, gate: b.graph.input('eight', [2, 4], 'f32') }, {})['dst']!
    return b.node('activation', { src: wide }, { act: actCode(act) })['dst']!
  },
}))

const bnCases: Case[] = [true, false].flatMap((batchStats) => {
  const attrs = { batch_stats: batchStats ? 1 : 0 }
  const drop = { drop_rate: 0.4, rng_stream: 5 }
  const none = { drop_rate: 0, rng_stream: 0 }
  const mode = batchStats ? 'batch statistics' : 'constant statistics'
  const src = (b: Builder) => b.param('src', [5, 3, 2, 3])
  const gate = (b: Builder) => b.param('gate', [5, 3])
  const silu = actCode('silu')
  return [
    {
      name: `bn_apply, ${mode}`,
      ops: ['bn_apply', 'bn_stats', 'bn_inv_std'],
      build: (b) => b.node('bn_apply', b.norm(src(b), batchStats), attrs)['dst']!,
    },
    ...ACTIVATIONS.map(
      (act): Case => ({
        name: `bn_act ${act}, ${mode}`,
        ops: ['bn_act'],
        build: (b) => b.node('bn_act', b.norm(src(b), batchStats), { ...attrs, ...none, act: actCode(act) })['dst']!,
      }),
    ),
    {
      name: `bn_act with gate, drop and residual, ${mode}`,
      ops: ['bn_act'],
      build: (b) =>
        b.node(
          'bn_act',
          { ...b.norm(src(b), batchStats), gate: gate(b), residual: b.param('residual', [5, 3, 2, 3]) },
          { ...attrs, ...drop, act: silu },
        )['dst']!,
    },
    {
      name: `bn_act with residual alone, ${mode}`,
      ops: ['bn_act'],
      build: (b) =>
        b.node(
          'bn_act',
          { ...b.norm(src(b), batchStats), residual: b.param('residual', [5, 3, 2, 3]) },
          { ...attrs, ...none, act: silu },
        )['dst']!,
    },
    {
      name: `bn_act_pool, ${mode}`,
      ops: ['bn_act_pool'],
      build: (b) => b.node('bn_act_pool', b.norm(src(b), batchStats), { ...attrs, act: silu })['pooled']!,
    },
    ...[none, drop].map(
      (dropping): Case => ({
        name: `bn_act_pool feeding the gate of bn_act, drop_rate ${dropping.drop_rate}, ${mode}`,
        ops: ['bn_act', 'bn_act_pool', 'se_gate'],
        build: (b) => {
          const norm = b.norm(src(b), batchStats)
          const pooled = b.node('bn_act_pool', norm, { ...attrs, act: silu })['pooled']!
          const weights = {
            weights0: b.param('w0', [2, 3]),
            bias0: b.param('b0', [2]),
            weights1: b.param('w1', [3, 2]),
            bias1: b.param('b1', [3]),
          }
          const { gate } = b.node('se_gate', { pooled, ...weights }, { act: silu })
          return b.node('bn_act', { ...norm, gate: gate! }, { ...attrs, ...dropping, act: silu })['dst']!
        },
      }),
    ),
  ] satisfies Case[]
})

const otherCases: Case[] = [
  {
    name: 'global_avg_pool',
    ops: ['global_avg_pool'],
    build: (b) => b.node('global_avg_pool', { src: b.param('src', [2, 3, 5, 3]) }, {})['dst']!,
  },
  {
    name: 'channel_scale',
    ops: ['channel_scale'],
    build: (b) => b.node('channel_scale', { src: b.param('src', [2, 3, 2, 5]), gate: b.param('gate', [2, 5]) }, {})['dst']!,
  },
  {
    name: 'add',
    ops: ['add'],
    build: (b) => b.node('add', { src0: b.param('a', [2, 3]), src1: b.param('b', [2, 3]) }, {})['dst']!,
  },
  {
    name: 'add of a tensor to itself',
    ops: ['add'],
    build: (b) => {
      const src = b.param('a', [2, 3])
      return b.node('add', { src0: src, src1: src }, {})['dst']!
    },
  },
  {
    name: 'drop_path',
    ops: ['drop_path'],
    build: (b) => b.node('drop_path', { src: b.param('src', [7, 2, 2, 3]) }, { drop_rate: 0.5, rng_stream: 9 })['dst']!,
  },
  {
    name: 'dropout',
    ops: ['dropout'],
    build: (b) => b.node('dropout', { src: b.param('src', [3, 11]) }, { drop_rate: 0.5, rng_stream: 9 })['dst']!,
  },
  {
    name: 'linear',
    ops: ['linear'],
    build: (b) =>
      b.node('linear', { src: b.param('src', [3, 5]), weights: b.param('w', [4, 5]), bias: b.param('b', [4]) }, {})['dst']!,
  },
  {
    name: 'linear without bias',
    ops: ['linear'],
    build: (b) => b.node('linear', { src: b.param('src', [3, 5]), weights: b.param('w', [4, 5]) }, {})['dst']!,
  },
  {
    name: 'a parameter that two nodes read',
    ops: ['linear', 'activation'],
    build: (b) => {
      const weights = b.param('w', [5, 5])
      const hidden = b.node('linear', { src: b.param('src', [3, 5]), weights }, {})['dst']!
      return b.node('linear', { src: b.node('activation', { src: hidden }, { act: actCode('silu') })['dst']!, weights }, {})[
        'dst'
      ]!
    },
  },
  {
    name: 'se_gate',
    ops: ['se_gate'],
    build: (b) => {
      const weights = {
        weights0: b.param('w0', [2, 5]),
        bias0: b.param('b0', [2]),
        weights1: b.param('w1', [5, 2]),
        bias1: b.param('b1', [5]),
      }
      return b.node('se_gate', { pooled: b.param('pooled', [3, 5]), ...weights }, { act: actCode('silu') })['gate']!
    },
  },
  { name: 'cast', ops: ['cast'], build: (b) => b.node('cast', { src: b.param('src', [2, 3]) }, {}, { dtype: 'f32' })['dst']! },
]

/** Gradients of sum(weight * dst) for random weights, by autodiff and by differences. */
function check(build: Case['build']): void {
  const plain = new Builder()
  const output = build(plain)
  const b = new Builder()
  const dst = build(b)
  const seed = b.graph.input('seed', dst.shape, dst.dtype)
  const gradients = autodiff(b.graph, new Map([[dst, seed]]))
  verify(b.graph)

  const next = uniform(11)
  const values = new Map<string, Float64Array>()
  for (const t of b.graph.tensors) {
    if (t.role === 'buffer')
      values.set(
        t.name,
        fillBy(t.shape, () => 1 + 0.5 * next()),
      )
    else if (t.name === 'eight')
      values.set(
        t.name,
        fillBy(t.shape, () => 8),
      )
    else if (t.role === 'input' || t.role === 'parameter') values.set(t.name, fillBy(t.shape, next))
  }
  const result = interpret(b.graph, { values, scalars: SCALARS })
  const weights = values.get('seed')!
  const objective = () => {
    const out = interpret(plain.graph, { values, scalars: SCALARS }).get(output.name)!
    return out.reduce((sum, v, i) => sum + v * weights[i]!, 0)
  }
  expect(new Set(gradients.keys())).toEqual(new Set(b.graph.parameters))
  for (const [p, gradient] of gradients) {
    const x = values.get(p.name)!
    const expected = x.map((_, i) => {
      const at = x[i]!
      x[i] = at + STEP
      const above = objective()
      x[i] = at - STEP
      const below = objective()
      x[i] = at
      return (above - below) / (2 * STEP)
    })
    const tolerance = 1e-7 * Math.max(1, maxAbs(expected))
    expect(maxDifference(result.get(gradient.name)!, expected), `gradient of ${p.name}`).toBeLessThan(tolerance)
  }
}

const CASES = [...convCases, convStatsCase, ...statsCases, ...actCases, ...bnCases, ...otherCases]

describe('gradient rules against finite differences', () => {
  it.each(CASES.map((c) => [c.name, c] as const))('%s', (_name, { build, ops }) => {
    const b = new Builder()
    build(b)
    for (const op of ops) if (op !== 'bn_stats' && op !== 'bn_inv_std') expect(b.graph.nodes.map((n) => n.op)).toContain(op)
    check(build)
  })

  it('covers every op that has a rule', () => {
    const covered = new Set<OpName>([...CASES.flatMap((c) => c.ops), 'softmax_cross_entropy'])
    expect(OP_NAMES.filter((op) => opDef(op).grad && !covered.has(op))).toEqual([])
  })
})

describe('softmax_cross_entropy', () => {
  it.each([0, 0.1])('makes the gradient of its loss, smoothing %f, with a sample left out', (smoothing) => {
    const build = () => {
      const graph = new Graph('loss')
      const logits = graph.parameter('logits', [4, 5], anyParam([4, 5]))
      const labels = graph.input('labels', [4], 'i32')
      const out = graph.node('softmax_cross_entropy', { logits, labels }, { label_smoothing: smoothing }, { name: 'loss' })
      return { graph, loss: out['loss']! }
    }
    const { graph, loss } = build()
    autodiff(graph, loss)
    verify(graph)
    const logits = fillBy([4, 5], uniform(3))
    const values = new Map([
      ['logits', logits],
      ['labels', Float64Array.of(1, -1, 4, 0)],
    ])
    const lossAt = () => interpret(build().graph, { values }).get(loss.name)![0]!
    const gradient = interpret(graph, { values }).get('grad:logits')!
    const expected = logits.map((at, i) => {
      logits[i] = at + STEP
      const above = lossAt()
      logits[i] = at - STEP
      const below = lossAt()
      logits[i] = at
      return (above - below) / (2 * STEP)
    })
    expect(maxDifference(gradient, expected)).toBeLessThan(1e-9)
    expect([...gradient.subarray(5, 10)]).toEqual([0, 0, 0, 0, 0])
  })
})
