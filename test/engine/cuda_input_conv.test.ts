/** Whole plans in which the first convolution reads uint8 images, beside the same plans with a normalised tensor: to the bit. */
import { expect, it } from 'vitest'
import { ARENA, binding, type MemoryHandle, type PoolHandle } from '../../ts/binding.js'
import type { Graph } from '../../ts/graph/graph.js'
import type { DType } from '../../ts/graph/types.js'
import { modelParams } from '../../ts/nn/index.js'
import { emit } from '../../ts/passes/emit.js'
import { planMemory } from '../../ts/passes/plan_memory.js'
import { evalProgram, trainProgram } from '../../ts/runtime/programs.js'
import { packScalars } from '../../ts/runtime/scalars.js'
import { weightsLayout } from '../../ts/runtime/weights_layout.js'
import { goldenWeights } from '../helpers/golden.js'
import { describeWith, FAKE_DRIVER } from '../helpers/stand_in.js'
import { withStoredInput } from '../helpers/stored_input.js'
import { shortened } from '../passes/training_graph.js'
import { hashPixels } from './harness.js'

// Read when the backend is used first.
process.env['EFFNET_LIB_DIR'] = FAKE_DRIVER.folder

const config = shortened('efficientnet_b0', 2)
const layout = weightsLayout(modelParams(config))
const LABELS = Int32Array.of(4, 2)

interface Run {
  kernels: string[]
  activationBytes: number
  output: Buffer
  weights: Buffer
}

async function steps(graph: Graph, count: number, mirrors: Record<string, boolean>, tf32: boolean): Promise<Run> {
  const native = binding()
  const pool: PoolHandle = native.createPool(1)
  const memory: MemoryHandle = native.createMemory(new Array(Object.keys(ARENA).length).fill(0), await native.openDevice('cuda'))
  try {
    const request = { weightOffsets: layout.offsets, weightBytes: layout.bytes, mirrors }
    const placed = planMemory(graph, request)
    const plan = emit(graph, placed, { tf32 })
    for (const [arena, size] of placed.arenaBytes.slice(0, ARENA.activations + 1).entries())
      if (size > 0) await native.ensureArena(memory, arena, size)
    for (const [name, values] of goldenWeights(config)) {
      const bytes = new Uint8Array(Float32Array.from(values).buffer)
      native.writeArena(memory, ARENA.weights, layout.offsets.get(name)!, bytes)
    }
    const input = new Uint8Array(placed.arenaBytes[ARENA.input]!)
    const executable = await native.bind(pool, memory, plan.bytes)
    const output: Uint8Array[] = []
    for (let step = 0; step < count; step++) {
      for (const t of graph.tensors.filter((each) => each.role === 'input')) {
        const bytes =
          t.dtype === 'u8'
            ? hashPixels(
                step,
                t.shape.reduce((a, b) => a * b),
              )
            : new Uint8Array(LABELS.buffer)
        input.set(bytes, placed.placements.get(t.id)!.offset)
      }
      output.push((await native.step(executable, { bytes: input }, packScalars({ seed: 3, step, lr: 0.1 }))).slice())
    }
    const weights = new Uint8Array(layout.bytes)
    native.readArena(memory, ARENA.weights, 0, weights)
    const kernels = native.dump(executable).map((row) => row.kernel)
    native.closeExecutable(executable)
    const activationBytes = placed.arenaBytes[ARENA.activations]!
    return { kernels, activationBytes, output: Buffer.concat(output), weights: Buffer.from(weights) }
  } finally {
    native.closePool(pool)
    native.closeMemory(memory)
  }
}

describeWith(FAKE_DRIVER, 'the first convolution on a GPU', () => {
  const more = { batchSize: 2, imageSize: 40, target: { device: 'cuda' } } as const
  const off = { labelSmoothing: 0, dropRate: 0, dropPathRate: 0, gradNorm: false, ema: false }
  const optimizer = { name: 'sgd' } as const
  const precisions = [
    ['f32', 'f32'],
    ['tf32', 'f32'],
    ['bf16', 'bf16'],
    ['f16', 'f16'],
  ] as const
  const both = async (graph: Graph, precision: string, count: number, mirrors: Record<string, boolean>) => {
    const tf32 = precision === 'tf32'
    const pixels = await steps(graph, count, mirrors, tf32)
    const stored = await steps(withStoredInput(graph, tf32 ? 'f32' : (precision as DType)), count, mirrors, tf32)
    for (const kernel of pixels.kernels.filter((name) => name.startsWith('input_'))) {
      expect(kernel).toContain(precision === 'f32' ? '_fma_' : '_mma_')
      expect(kernel).toContain(`_${precision}:`)
    }
    expect(pixels.output.equals(stored.output)).toBe(true)
    expect(pixels.weights.equals(stored.weights)).toBe(true)
    expect(pixels.output.some((byte) => byte !== 0)).toBe(true)
    const own = (run: Run) =>
      run.kernels.filter((kernel) => kernel.startsWith('input_')).map((k) => k.replace(/_(mma|fma).*/, ''))
    return [own(pixels), own(stored).length]
  }

  it.each(precisions)('%s: two steps of training', { timeout: 120_000 }, async (precision, dtype) => {
    const graph = trainProgram(config, { ...more, ...off, dtype, optimizer })
    const kernels = await both(graph, precision, 2, { grads: true, moment0: true })
    expect(kernels).toEqual([['input_conv2d_stats', 'input_conv2d_bwd_weights'], 1])
  })

  it.each(precisions)('%s: evaluation', { timeout: 120_000 }, async (precision, dtype) => {
    const { graph } = evalProgram(config, { ...more, dtype })
    expect(await both(graph, precision, 1, {})).toEqual([['input_conv2d_bias_act'], 1])
  })
})
