/** A block with squeeze-and-excitation, trained one step by the engine: its gradients against the float64 interpreter. */
import { expect, it } from 'vitest'
import { ARENA, binding } from '../../ts/binding.js'
import { Graph } from '../../ts/graph/graph.js'
import { interpret } from '../../ts/graph/interpreter.js'
import { actCode, elements, type Tensor } from '../../ts/graph/types.js'
import { emit } from '../../ts/passes/emit.js'
import { appendOptimizer, autodiff, eliminateDead, fuseTraining, markOutputs, recompute } from '../../ts/passes/index.js'
import { align, planMemory } from '../../ts/passes/plan_memory.js'
import { packScalars } from '../../ts/runtime/scalars.js'
import { anyParam } from '../graph/values.js'
import { hashFill } from '../helpers/golden.js'
import { hashLabels, hashPixels, relativeError } from './harness.js'

const [SIZE, CHANNELS, SQUEEZED, CLASSES] = [20, 24, 4, 5]
const SCALARS = { lr: 0.1, momentum: 0.9, seed: 5, step: 3 }

/** Convolution, BN, SiLU, gate (and drop_path), projection, classifier, loss; compiled as for training. */
function program(batch: number, dtype: 'f32' | 'bf16', dropRate: number, policy: 'none' | 'cheap'): Graph {
  const graph = new Graph('block')
  const images = graph.input('images', [batch, SIZE, SIZE, 3], 'u8')
  const labels = graph.input('labels', [batch], 'i32')
  const param = (name: string, ...shape: number[]): Tensor => graph.parameter(name, shape, anyParam(shape))
  const running = ['running_mean', 'running_var'].map((name) => graph.buffer(name, [CHANNELS], anyParam([CHANNELS])))
  const node = (op: Parameters<Graph['node']>[0], inputs: Record<string, Tensor>, attrs: Record<string, number>, name: string) =>
    Object.values(graph.node(op, inputs, attrs, { name, dtype }))[0]!
  const pad = { stride: 1, pad_t: 0, pad_l: 0, pad_b: 0, pad_r: 0 }
  const silu = (src: Tensor, name: string): Tensor => node('activation', { src }, { act: actCode('silu') }, name)

  const scaling = { mean0: 120, mean1: 120, mean2: 120, std0: 60, std1: 60, std2: 60 }
  const src = node('input_normalize', { src: images }, scaling, 'normalised')
  const raw = node('conv2d', { src, weights: param('expand', CHANNELS, 1, 1, 3) }, pad, 'raw')
  const { mean, inv_std } = graph.node(
    'bn_stats',
    { src: raw },
    { eps: 1e-3, momentum: 0.1 },
    { name: 'stats', updates: running },
  )
  const norm = { src: raw, mean: mean!, inv_std: inv_std!, scale: param('scale', CHANNELS), shift: param('shift', CHANNELS) }
  const wide = silu(node('bn_apply', norm, { batch_stats: 1 }, 'bn'), 'wide')
  const pooled = node('global_avg_pool', { src: wide }, {}, 'pooled')
  const first = { src: pooled, weights: param('fc0', SQUEEZED, CHANNELS), bias: param('fc0_bias', SQUEEZED) }
  const hidden = silu(node('linear', first, {}, 'hidden'), 'hidden_act')
  const second = { src: hidden, weights: param('fc1', CHANNELS, SQUEEZED), bias: param('fc1_bias', CHANNELS) }
  const gate = node('activation', { src: node('linear', second, {}, 'logit') }, { act: actCode('sigmoid') }, 'gate')
  let gated = node('channel_scale', { src: wide, gate }, {}, 'gated')
  if (dropRate > 0) gated = node('drop_path', { src: gated }, { drop_rate: dropRate, rng_stream: 3 }, 'dropped')
  const narrow = silu(node('conv2d', { src: gated, weights: param('project', 16, 1, 1, CHANNELS) }, pad, 'project_raw'), 'narrow')
  const features = node('global_avg_pool', { src: narrow }, {}, 'features')
  const classifier = { src: features, weights: param('classifier', CLASSES, 16), bias: param('classifier_bias', CLASSES) }
  graph.node(
    'softmax_cross_entropy',
    { logits: node('linear', classifier, {}, 'logits'), labels },
    { label_smoothing: 0 },
    { name: 'loss' },
  )

  const fused = fuseTraining(graph, { device: 'cpu' })
  autodiff(fused, fused.find('loss:loss'))
  appendOptimizer(fused, { name: 'sgd', gradNorm: false, ema: false })
  return recompute(eliminateDead(markOutputs(fused, ['loss:loss'])), policy)
}

/** Gradients of one step on `threads` threads, by parameter. */
async function gradients(
  graph: Graph,
  values: ReadonlyMap<string, Float64Array>,
  threads: number,
): Promise<Map<string, Float32Array>> {
  const offsets = new Map<string, number>()
  let weightBytes = 0
  for (const t of [...graph.parameters, ...graph.buffers]) {
    offsets.set(t.name, weightBytes)
    weightBytes = align(weightBytes + 4 * elements(t.shape))
  }
  const plan = planMemory(graph, { weightOffsets: offsets, weightBytes, mirrors: { grads: true, moment0: true } })
  const native = binding()
  const own: number[] = [ARENA.prepared, ARENA.input, ARENA.output]
  const memory = native.createMemory(plan.arenaBytes.map((bytes, i) => (own.includes(i) ? 0 : bytes)))
  const pool = native.createPool(threads)
  try {
    for (const [name, offset] of offsets) {
      const bytes = new Uint8Array(Float32Array.from(values.get(name)!).buffer)
      native.writeArena(memory, ARENA.weights, offset, bytes)
    }
    const executable = await native.bind(pool, memory, emit(graph, plan).bytes)
    const [images, labels] = [Uint8Array.from(values.get('images')!), Int32Array.from(values.get('labels')!)]
    const input = new Uint8Array(align(images.length) + align(labels.byteLength))
    input.set(images)
    input.set(new Uint8Array(labels.buffer), align(images.length))
    await native.step(executable, { bytes: input }, packScalars(SCALARS))
    const result = new Map<string, Float32Array>()
    for (const t of graph.parameters) {
      const bytes = new Uint8Array(4 * elements(t.shape))
      native.readArena(memory, ARENA.grads, offsets.get(t.name)!, bytes)
      result.set(t.name, new Float32Array(bytes.buffer))
    }
    native.closeExecutable(executable)
    return result
  } finally {
    native.closePool(pool)
    native.closeMemory(memory)
  }
}

function valuesOf(graph: Graph, batch: number): Map<string, Float64Array> {
  const values = new Map<string, Float64Array>([
    ['images', Float64Array.from(hashPixels(1, batch * SIZE * SIZE * 3))],
    ['labels', Float64Array.from(hashLabels(2, batch, CLASSES))],
  ])
  ;[...graph.parameters, ...graph.buffers].forEach((t, i) => {
    const around = t.name === 'scale' || t.name === 'running_var' ? 1 : 0
    values.set(t.name, Float64Array.from(Float32Array.from(hashFill(10 + i, elements(t.shape)), (u) => around + 0.6 * u)))
  })
  return values
}

it.each([
  // Few images are split into bands of rows, many into images.
  ['f32', 2, 0, 1e-5],
  ['f32', 20, 0.3, 1e-5],
  ...(binding().cpuInfo().avx512Bf16 ? [['bf16', 2, 0.3, 2e-2] as const, ['bf16', 20, 0, 2e-2] as const] : []),
] as const)('%s, %i images, drop rate %d', async (dtype, batch, dropRate, tolerance) => {
  const graph = program(batch, dtype, dropRate, 'cheap')
  const [pass] = graph.nodes.filter((n) => n.op === 'bn_act_bwd_sums')
  expect(pass!.outputs.every(Boolean)).toBe(true)
  const values = valuesOf(graph, batch)
  const want = interpret(graph, { values, scalars: SCALARS })
  const got = await gradients(graph, values, 1)
  for (const [name, gradient] of got) {
    expect(relativeError(gradient, want.get(`grad:${name}`)!), name).toBeLessThan(tolerance)
  }
  for (const threads of [2, 3]) expect(await gradients(graph, values, threads)).toEqual(got)
  expect(await gradients(program(batch, dtype, dropRate, 'none'), values, 2)).toEqual(got)
})
