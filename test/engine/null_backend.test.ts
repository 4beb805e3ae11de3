import { describe, expect, it } from 'vitest'
import { ARENA } from '../../ts/binding.js'
import { getModelConfig, modelInfo } from '../../ts/nn/index.js'
import { planWithoutMemory } from '../../ts/runtime/null_backend.js'
import { evalProgram, trainProgram } from '../../ts/runtime/programs.js'

const target = { device: 'cpu' } as const

describe('null backend', () => {
  it.each(['tf_efficientnet_b7', 'tf_efficientnetv2_xl', 'efficientnet_l2'])(
    'plans and verifies %s without its memory',
    (name) => {
      const config = getModelConfig(name)
      const graph = trainProgram(config, {
        batchSize: 64,
        imageSize: config.imageSize,
        dtype: 'f32',
        optimizer: { name: 'rmsprop_tf' },
        labelSmoothing: 0.1,
        dropRate: config.dropRate,
        dropPathRate: config.dropPathRate,
        gradNorm: true,
        ema: true,
        target,
      })
      const before = process.memoryUsage().rss
      const plan = planWithoutMemory(config, graph)
      expect(plan.ops).toBe(graph.nodes.length)
      // Every parameter has its place, and the step would not fit any machine that runs this test.
      expect(plan.arenaBytes[ARENA.weights]!).toBeGreaterThanOrEqual(4 * modelInfo(name as never).params)
      expect(plan.arenaBytes[ARENA.activations]!).toBeGreaterThan(20 * 2 ** 30)
      expect(process.memoryUsage().rss - before).toBeLessThan(300 * 2 ** 20)
      const { graph: forward } = evalProgram(config, { batchSize: 1, imageSize: config.evalSize, dtype: 'f32', target })
      expect(planWithoutMemory(config, forward).ops).toBe(forward.nodes.length)
    },
  )

  it('verifies plans of every number format, with their tensors as narrow as they are', () => {
    const config = getModelConfig('efficientnet_b0')
    const bytes = (['f32', 'bf16', 'f16'] as const).map((dtype) => {
      const graph = trainProgram(config, {
        batchSize: 8,
        imageSize: 64,
        dtype,
        optimizer: { name: 'sgd' },
        labelSmoothing: 0,
        dropRate: 0.2,
        dropPathRate: 0.2,
        gradNorm: true,
        ema: false,
        target: { device: 'cuda' },
      })
      return planWithoutMemory(config, graph, null, { tf32: dtype === 'f32' }).arenaBytes[ARENA.activations]!
    })
    expect(bytes[1]! / bytes[0]!).toBeLessThan(0.65)
    expect(bytes[2]).toBe(bytes[1])
  })
})
