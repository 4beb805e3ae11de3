/**
 * A whole training step of a small model, captured and replayed on a driver without a GPU (native/cuda/fake), beside the float64
 * interpreter that rounds what the plan stores and what its products read. What each result may be off by is studied for each type
 * (test/helpers/rounding_study.ts).
 */
import { expect, it } from 'vitest'
import { ARENA, binding } from '../../ts/binding.js'
import { type InterpretOptions, interpret } from '../../ts/graph/interpreter.js'
import { elements, type Tensor } from '../../ts/graph/types.js'
import { modelParams } from '../../ts/nn/index.js'
import { emit } from '../../ts/passes/emit.js'
import { planMemory } from '../../ts/passes/plan_memory.js'
import { trainProgram } from '../../ts/runtime/programs.js'
import { packScalars } from '../../ts/runtime/scalars.js'
import { weightsLayout } from '../../ts/runtime/weights_layout.js'
import { networkValues } from '../graph/values.js'
import { decode, encode, error, type LayerPrecision, storage } from '../helpers/layer_check.js'
import { studyRounding } from '../helpers/rounding_study.js'
import { BLOCK, smallConfig } from '../helpers/small_config.js'
import { describeWith, FAKE_DRIVER } from '../helpers/stand_in.js'

// Read when the backend is used first.
process.env['EFFNET_LIB_DIR'] = FAKE_DRIVER.folder

const stages = [
  BLOCK,
  { ...BLOCK, expand: 2, kernel: 5, stride: 2, out: 16 },
  { ...BLOCK, expand: 2, op: 'fused', in: 16, out: 16, se: false },
] as const
const config = smallConfig('tf_efficientnet_b0', stages, { head: 24 })
const SCALARS = { lr: 0.1, momentum: 0.9, weight_decay: 1e-3, clip_norm: 1, ema_decay: 0.9, seed: 5, step: 2 }

function program(precision: LayerPrecision) {
  const rates = { labelSmoothing: 0.1, dropRate: 0.2, dropPathRate: 0.2 }
  const common = { batchSize: 4, imageSize: 19, dtype: storage(precision), target: { device: 'cuda' } } as const
  const graph = trainProgram(config, { ...common, ...rates, optimizer: { name: 'sgd' }, gradNorm: true, ema: true })
  const given = networkValues(graph, 7)
  // Classes from 0 on, some more than once.
  const labels = graph.tensors.find((t) => t.role === 'input' && t.dtype === 'i32')!
  given.set(labels.name, Float64Array.of(0, 1, 2, 1))
  const values = new Map([...given].map(([name, all]) => [name, all.map(Math.fround)]))
  const options: InterpretOptions = { values, scalars: SCALARS, tf32: precision === 'tf32' }
  // Activations are planned into one another's place: compared is what is left at the end, all of it FP32.
  const compared = graph.tensors.filter(
    (t) => ['output', 'gradient', 'parameter', 'buffer'].includes(t.role) && t.dtype === 'f32',
  )
  return { graph, values, options, compared }
}

/** What the second of two equal steps makes, a replay of the graph that the first one captured. */
async function replayed({ graph, values, compared }: ReturnType<typeof program>, precision: LayerPrecision) {
  const native = binding()
  const layout = weightsLayout(modelParams(config))
  const mirrors = { grads: true, moment0: true, moment1: false, ema: true }
  const placed = planMemory(graph, { weightOffsets: layout.offsets, weightBytes: layout.bytes, mirrors })
  const plan = emit(graph, placed, { tf32: precision === 'tf32' })
  const pool = native.createPool(1)
  const memory = native.createMemory(new Array(Object.keys(ARENA).length).fill(0), await native.openDevice('cuda'))
  try {
    for (const arena of [ARENA.weights, ARENA.grads, ARENA.moment0, ARENA.ema])
      await native.ensureArena(memory, arena, layout.bytes)
    await native.ensureArena(memory, ARENA.activations, placed.arenaBytes[ARENA.activations]!)
    const input = new Uint8Array(placed.arenaBytes[ARENA.input]!)
    for (const t of graph.tensors)
      if (t.role === 'input') input.set(encode(values.get(t.name)!, t.dtype), placed.placements.get(t.id)!.offset)
    const executable = await native.bind(pool, memory, plan.bytes)
    let output = new Uint8Array()
    for (let i = 0; i < 2; i++) {
      native.writeArena(memory, ARENA.moment0, 0, new Uint8Array(layout.bytes))
      for (const { name, offset } of layout.slots)
        for (const arena of [ARENA.weights, ARENA.ema]) native.writeArena(memory, arena, offset, encode(values.get(name)!, 'f32'))
      native.invalidate(executable)
      output = (await native.step(executable, { bytes: input }, packScalars(SCALARS))).slice()
    }
    const made = new Map<Tensor, ArrayLike<number>>()
    for (const t of compared) {
      const { offset, arena } = placed.placements.get(t.id)!
      const bytes = new Uint8Array(4 * elements(t.shape))
      if (arena === ARENA.output) bytes.set(output.subarray(offset, offset + bytes.length))
      else native.readArena(memory, arena, offset, bytes)
      made.set(t, decode(bytes, t.dtype))
    }
    native.closeExecutable(executable)
    return made
  } finally {
    native.closePool(pool)
    native.closeMemory(memory)
  }
}

describeWith(FAKE_DRIVER, 'a captured training step', () => {
  it.each([
    ['f32', 0.002],
    ['tf32', 0.3],
    ['bf16', 1],
    ['f16', 0.3],
  ] as const)('%s: is that of float64 with the roundings of the plan', { timeout: 120_000 }, async (precision, change) => {
    const step = program(precision)
    const study = studyRounding(step.graph, step.options)
    const made = await replayed(step, precision)
    const beyond = (want: Map<string, Float64Array>): string[] =>
      [...made].flatMap(([t, got]) => {
        const off = error(got, want.get(t.name)!, 'i32')
        return off <= study.limit(t.name) ? [] : [`${t.name} [${t.shape}]: ${off} > ${study.limit(t.name)}`]
      })
    expect(beyond(study.exact)).toEqual([])
    expect(made.size).toBeGreaterThan(60)
    // The limits find a step that is another one: a weight of the middle of the model is so much larger.
    const name = 'blocks.1.0.conv_pw.weight'
    const other = new Map(step.values).set(
      name,
      step.values.get(name)!.map((x, i) => (i === 5 ? x * (1 + change) : x)),
    )
    const wrong = interpret(step.graph, { ...step.options, values: other, storage: 'as-typed' })
    expect(beyond(wrong).length).toBeGreaterThan(2)
  })
})
