/** Plans are made in parts, so that the event loop has its turns meanwhile. */
import { describe, expect, it } from 'vitest'
import { getModelConfig, modelParams } from '../../ts/nn/index.js'
import { emit } from '../../ts/passes/emit.js'
import { planMemory } from '../../ts/passes/plan_memory.js'
import { evalProgram, type TrainProgramOptions, trainProgram } from '../../ts/runtime/programs.js'
import { weightsLayout } from '../../ts/runtime/weights_layout.js'
import { inTurns, type Parts, parted } from '../../ts/turns.js'

const config = getModelConfig('tf_efficientnet_b0')
const layout = weightsLayout(modelParams(config))
const request = { weightOffsets: layout.offsets, weightBytes: layout.bytes }
const shape = { batchSize: 2, imageSize: 64, dtype: 'f32', target: { device: 'cpu' } } as const
const training: TrainProgramOptions = {
  ...shape,
  optimizer: { name: 'sgd' },
  labelSmoothing: 0,
  dropRate: 0.2,
  dropPathRate: 0.2,
  gradNorm: true,
  ema: true,
}

function counted<T>(parts: Parts<T>): { value: T; count: number } {
  for (let count = 1; ; count++) {
    const part = parts.next()
    if (part.done) return { value: part.value, count }
  }
}

describe('a plan in parts', () => {
  it('has a part for each node in each pass', () => {
    const { value: graph, count } = counted(trainProgram.parts(config, training))
    // Seven passes behind the network itself; what the last ones remove or add is less than a part each.
    expect(count).toBeGreaterThan(7 * graph.nodes.length)
    const plan = counted(planMemory.parts(graph, request))
    expect(plan.count).toBeGreaterThan(graph.nodes.length)
    expect(counted(emit.parts(graph, plan.value)).count).toBeGreaterThan(graph.nodes.length + plan.value.placements.size)
    const evaluation = counted(evalProgram.parts(config, shape))
    expect(evaluation.count).toBeGreaterThan(4 * evaluation.value.graph.nodes.length)
  })

  it('is the same plan', async () => {
    const hash = (parts: Parts<ReturnType<typeof trainProgram>>) =>
      inTurns(
        (function* () {
          const graph = yield* parts
          return emit(graph, planMemory(graph, request)).hash
        })(),
      )
    const graph = trainProgram(config, training)
    expect(await hash(trainProgram.parts(config, training))).toBe(emit(graph, planMemory(graph, request)).hash)
  })
})

describe('work in turns', () => {
  const busy = parted(function* (milliseconds: number): Parts<string> {
    const until = performance.now() + milliseconds
    while (performance.now() < until) yield
    return 'done'
  })

  it('lets others have theirs', async () => {
    const order: string[] = []
    setTimeout(() => order.push('timer'))
    order.push(await inTurns(busy.parts(50)))
    expect(order).toEqual(['timer', 'done'])
  })

  it('goes on at once where nobody waits, and throws what it throws', async () => {
    expect(busy(1)).toBe('done')
    const failing = parted(function* (): Parts<never> {
      yield
      throw new Error('in the middle')
    })
    expect(() => failing()).toThrow('in the middle')
    await expect(inTurns(failing.parts())).rejects.toThrow('in the middle')
  })
})
