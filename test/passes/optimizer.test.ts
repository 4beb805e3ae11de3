import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import { emptyState, type InterpreterState, interpret } from '../../ts/graph/interpreter.js'
import { verify } from '../../ts/graph/verify.js'
import { appendOptimizer, type OptimizerSpec } from '../../ts/passes/index.js'
import type { StepScalars } from '../../ts/runtime/scalars.js'
import { anyParam, maxDifference } from '../graph/values.js'

/** One parameter per shape with its gradient given as an input. */
function graphOf(shapes: Record<string, number[]>, spec: OptimizerSpec): Graph {
  const graph = new Graph('update')
  for (const [name, shape] of Object.entries(shapes)) {
    const of = graph.parameter(name, shape, anyParam(shape))
    const given = graph.input(`given:${name}`, shape, 'f32')
    const into = { dst: graph.tensor(`grad:${name}`, shape, 'f32', 'gradient', { of }) }
    graph.node('cast', { src: given }, {}, { name: `copy ${name}`, into })
  }
  appendOptimizer(graph, spec)
  verify(graph)
  return graph
}

/** Weights of parameter w after each step. */
function run(
  spec: OptimizerSpec,
  start: number[],
  grads: number[][],
  scalars: Partial<StepScalars>,
  state = emptyState(),
): Float64Array[] {
  const graph = graphOf({ w: [1, start.length] }, spec)
  let w: Float64Array = Float64Array.from(start)
  return grads.map((grad, i) => {
    const values = new Map([
      ['w', w],
      ['given:w', Float64Array.from(grad)],
    ])
    w = interpret(graph, { values, scalars: { ...scalars, optimizer_step: i + 1 }, state }).get('w')!
    return w
  })
}

describe('RMSProp', () => {
  const grads = [[0.1], [-0.2], [0.05], [0]]
  const base = { lr: 0.01, momentum: 0.9, alpha: 0.9 }
  const squares = (value: number): InterpreterState => ({ ...emptyState(), moment0: new Map([['w', Float64Array.of(value)]]) })

  it.each([
    [
      'TensorFlow 2',
      'rmsprop_tf',
      0,
      { eps: 1e-3 },
      [0.9776393202250021, 0.9835524906236688, 0.982228321765577, 0.9810365697932942],
    ],
    [
      'TensorFlow 1, squares from 1',
      'rmsprop_tf',
      1,
      { eps: 1e-3 },
      [0.9989470767121433, 1.000213618643438, 1.0007701595987306, 1.001271046458494],
    ],
    [
      'PyTorch',
      'rmsprop',
      0,
      { eps: 0.01, weight_decay: 1e-5 },
      [0.9759741154932536, 0.9793500690388778, 0.9759985036225115, 0.9729807892469259],
    ],
  ] as const)('%s', (_title, name, squaresFrom, scalars, expected) => {
    const after = run({ name }, [1], grads, { ...base, ...scalars }, squares(squaresFrom))
    expect(
      maxDifference(
        Float64Array.from(after, (w) => w[0]!),
        Float64Array.from(expected),
      ),
    ).toBeLessThan(1e-14)
  })
})

interface Fixture {
  weights: number[]
  grads: number[][]
  cases: { name: 'sgd' | 'rmsprop' | 'adamw'; nesterov: boolean; scalars: Partial<StepScalars>; after: number[][] }[]
}
const fixture = JSON.parse(readFileSync(new URL('../fixtures/passes/optimizers.json', import.meta.url), 'utf8')) as Fixture

describe('PyTorch', () => {
  it.each(fixture.cases.map((c) => [`${c.name} ${JSON.stringify(c.scalars)}${c.nesterov ? ' nesterov' : ''}`, c] as const))(
    '%s',
    (_title, c) => {
      const spec = { name: c.name, nesterov: c.nesterov, gradNorm: c.scalars.clip_norm! > 0 }
      run(spec, fixture.weights, fixture.grads, c.scalars).forEach((w, i) => {
        expect(maxDifference(w, Float64Array.from(c.after[i]!))).toBeLessThan(1e-13)
      })
    },
  )
})

describe('appendOptimizer', () => {
  const shapes = { weight: [2, 2], bias: [2] }
  const values = () =>
    new Map([
      ['weight', Float64Array.of(1, 2, 3, 4)],
      ['bias', Float64Array.of(5, 6)],
      ['given:weight', Float64Array.of(0, 0, 3, 0)],
      ['given:bias', Float64Array.of(0, 4)],
    ])
  const scalars = { lr: 0.5, weight_decay: 0.1 }

  it('decays matrices and convolutions alone', () => {
    const result = interpret(graphOf(shapes, { name: 'sgd' }), { values: values(), scalars })
    expect([...result.get('weight')!]).toEqual([0.95, 1.9, 1.35, 3.8])
    expect([...result.get('bias')!]).toEqual([5, 4])
  })

  it('takes another rule for decay', () => {
    const graph = graphOf(shapes, { name: 'sgd', decays: () => true })
    expect(graph.nodes.filter((n) => n.op === 'optimizer_sgd')).toHaveLength(1)
    expect([...interpret(graph, { values: values(), scalars }).get('bias')!]).toEqual([4.75, 3.7])
  })

  it('clips by the norm over both groups', () => {
    const graph = graphOf(shapes, { name: 'sgd', gradNorm: true })
    const clipped = interpret(graph, { values: values(), scalars: { lr: 1, clip_norm: 1 } })
    expect(clipped.get('grad_norm')![0]).toBe(5)
    expect(clipped.get('weight')![2]).toBeCloseTo(3 - 0.6, 14)
    expect(clipped.get('bias')![1]).toBeCloseTo(6 - 0.8, 14)
    const within = interpret(graph, { values: values(), scalars: { lr: 1, clip_norm: 10 } })
    expect(within.get('bias')![1]).toBe(2)
  })

  it('averages parameters and buffers after the update', () => {
    const graph = new Graph('ema')
    const of = graph.parameter('w', [1], anyParam([1]))
    graph.buffer('running', [1], anyParam([1]))
    const into = { dst: graph.tensor('grad:w', [1], 'f32', 'gradient', { of }) }
    graph.node('fill', {}, { value: 2 }, { name: 'gradient', into })
    appendOptimizer(graph, { name: 'sgd', ema: true })
    verify(graph)
    const state = emptyState()
    const given = new Map([
      ['w', Float64Array.of(10)],
      ['running', Float64Array.of(7)],
    ])
    interpret(graph, { values: given, scalars: { lr: 1, ema_decay: 0.75 }, state })
    expect(state.ema.get('w')![0]).toBe(0.75 * 10 + 0.25 * 8)
    expect(state.ema.get('running')![0]).toBe(7)
  })

  it('refuses a graph without gradients', () => {
    expect(() => appendOptimizer(new Graph('empty'), { name: 'sgd' })).toThrow('no gradients')
  })
})
