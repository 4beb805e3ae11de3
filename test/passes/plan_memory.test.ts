import { describe, expect, it } from 'vitest'
import type { Graph } from '../../ts/graph/graph.js'
import { ALIGNMENT, ARENA } from '../../ts/graph/plan_format.js'
import { type Tensor, tensorBytes } from '../../ts/graph/types.js'
import { getModelConfig, listModels, modelParams } from '../../ts/nn/index.js'
import { emit } from '../../ts/passes/emit.js'
import { type MemoryPlan, planMemory } from '../../ts/passes/plan_memory.js'
import { evalProgram, type TrainProgramOptions, trainProgram } from '../../ts/runtime/programs.js'
import { weightsLayout } from '../../ts/runtime/weights_layout.js'

const train = (name: string, more: Partial<TrainProgramOptions> = {}): Graph =>
  trainProgram(getModelConfig(name), {
    batchSize: 4,
    imageSize: 64,
    dtype: 'f32',
    optimizer: { name: 'adamw' },
    labelSmoothing: 0.1,
    dropRate: 0.2,
    dropPathRate: 0.2,
    gradNorm: true,
    ema: true,
    target: { device: 'cpu' },
    ...more,
  })

function plan(name: string, graph: Graph): MemoryPlan {
  const layout = weightsLayout(modelParams(getModelConfig(name)))
  return planMemory(graph, {
    weightOffsets: layout.offsets,
    weightBytes: layout.bytes,
    mirrors: { grads: true, moment0: true, moment1: true, ema: true },
  })
}

/** Runs the nodes in order over a model of the arena that remembers who wrote each 64-byte line last. */
function checkNobodyIsOverwritten(graph: Graph, memory: MemoryPlan): void {
  const owner = new Map<number, Tensor>()
  const lines = (t: Tensor): number[] => {
    const { offset } = memory.placements.get(t.id)!
    const count = Math.ceil(tensorBytes(t) / ALIGNMENT)
    // First, last and some between: enough to see any overlap of ranges that both have these.
    return [...new Set([0, count >> 2, count >> 1, count - 1])].map((i) => offset / ALIGNMENT + i)
  }
  for (const node of graph.nodes) {
    for (const t of node.inputs) {
      if (t?.role !== 'activation') continue
      for (const line of lines(t)) {
        if (owner.get(line) !== t) throw new Error(`${node.name} reads ${t.name}, overwritten by ${owner.get(line)?.name}`)
      }
    }
    for (const t of node.outputs) {
      if (t?.role !== 'activation') continue
      const { offset } = memory.placements.get(t.id)!
      const first = offset / ALIGNMENT
      const count = Math.ceil(tensorBytes(t) / ALIGNMENT)
      for (let i = 0; i < count; i++) owner.set(first + i, t)
    }
  }
}

describe('memory planner', () => {
  it.each(['efficientnet_b0', 'efficientnetv2_b0', 'efficientnet_lite0'])(
    'keeps every tensor of %s until its last reader',
    (name) => {
      for (const recompute of ['none', 'cheap'] as const) {
        const graph = train(name, { recompute })
        checkNobodyIsOverwritten(graph, plan(name, graph))
      }
      const { graph } = evalProgram(getModelConfig(name), {
        batchSize: 2,
        imageSize: 64,
        dtype: 'bf16',
        target: { device: 'cpu' },
      })
      checkNobodyIsOverwritten(graph, plan(name, graph))
    },
  )

  it('puts gradients at the offsets of their parameters', () => {
    const graph = train('efficientnet_b0')
    const memory = plan('efficientnet_b0', graph)
    const gradients = graph.tensors.filter((t) => t.role === 'gradient')
    expect(gradients.length).toBe(graph.parameters.length)
    for (const g of gradients) {
      expect(memory.placements.get(g.id)).toEqual({ arena: ARENA.grads, offset: memory.placements.get(g.of!.id)!.offset })
    }
  })

  it('needs less when cheap results are made again, and little beyond the widest moment in evaluation', () => {
    const bytes = (graph: Graph): number => plan('efficientnet_b0', graph).arenaBytes[ARENA.activations]!
    // Of what is wide, `none` too stores nothing between an expansion and its depthwise convolution.
    expect(bytes(train('efficientnet_b0', { recompute: 'cheap' }))).toBeLessThan(
      0.75 * bytes(train('efficientnet_b0', { recompute: 'none' })),
    )
    const { graph } = evalProgram(getModelConfig('efficientnet_b0'), {
      batchSize: 1,
      imageSize: 224,
      dtype: 'f32',
      target: { device: 'cpu' },
    })
    // Widest moment of B0 at 224 px: 112*112*96 in, 56*56*96 out.
    const widest = 4 * 96 * (112 * 112 + 56 * 56)
    expect(bytes(graph)).toBeLessThanOrEqual(1.05 * widest)
  })
})

describe('emitted plans', () => {
  it('are equal for equal graphs and differ otherwise', () => {
    const make = (more: Partial<TrainProgramOptions> = {}) => {
      const graph = train('efficientnet_b0', more)
      return emit(graph, plan('efficientnet_b0', graph)).hash
    }
    expect(make()).toBe(make())
    expect(make({ labelSmoothing: 0.2 })).not.toBe(make())
  })

  it('exist for every model', () => {
    for (const name of listModels()) {
      const graph = train(name, { batchSize: 1 })
      expect(emit(graph, plan(name, graph)).bytes.length).toBeGreaterThan(10_000)
    }
  })

  it('marks what may use TF32, where it was asked for: products of FP32 images and matrices', () => {
    const config = getModelConfig('efficientnet_b0')
    const marked = (dtype: 'f32' | 'bf16', tf32: boolean): string[] => {
      const { graph } = evalProgram(config, { batchSize: 1, imageSize: 64, dtype, target: { device: 'cuda' } })
      const { bytes } = emit(graph, plan('efficientnet_b0', graph), { tf32 })
      const view = new DataView(bytes.buffer)
      const ops = Number(view.getBigUint64(48, true))
      const nodes = [...graph.nodes.filter((n) => n.prepare), ...graph.nodes.filter((n) => !n.prepare)]
      return nodes.filter((_, i) => view.getUint16(ops + 44 * i + 2, true) & 4).map((n) => n.op)
    }
    const kinds = new Set(marked('f32', true))
    expect([...kinds].sort()).toEqual(['conv2d_bias_act', 'input_conv2d_bias_act', 'linear'])
    expect(marked('f32', false)).toEqual([])
    expect(marked('bf16', true)).toEqual(['linear'])
  })
})
