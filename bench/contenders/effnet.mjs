#!/usr/bin/env node
/** Ours: a training step, inference, or the input pipeline, with the same settings as the peers. Needs `npm run setup`. */
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { options, randomSource, say, serve } from './protocol.mjs'

const dist = (file) => import(new URL(`../../dist/${file}`, import.meta.url).href)

const o = options()
const [batchSize, imageSize] = [o['batch-size'], o['image-size']]
/** Batches, the loader's default. */
const PREFETCH = 3

async function model() {
  const { createModel } = await dist('index.js')
  const created = await createModel(o.model, { precision: o.precision, threads: o.threads, imageSize })
  const random = randomSource()
  const pixels = Uint8Array.from({ length: batchSize * imageSize * imageSize * 3 }, () => random() & 255)
  const labels = Int32Array.from({ length: batchSize }, () => random() % created.config.numClasses)
  if (o.mode === 'infer') {
    const plan = await created.session.evalPlan({ batchSize, imageSize })
    const input = plan.packInput(pixels, labels)
    return () => plan.run(input)
  }
  const plan = await created.session.trainPlan({
    batchSize,
    imageSize,
    optimizer: { name: 'rmsprop' },
    labelSmoothing: 0.1,
    dropRate: 0.2,
    dropPathRate: 0.2,
    ema: false,
    clip: false,
  })
  const input = plan.packInput(pixels, labels)
  let step = 0
  return () => plan.step(input, { lr: 1e-3, momentum: 0.9, alpha: 0.9, eps: 1e-3, seed: 0, step, optimizer_step: ++step })
}

/** Batches of the loader, each normalised to FP32 by the op that a plan begins with. */
async function data() {
  const [{ ARENA, binding }, { Graph }, { createImageLoader }, { planMemory }, { emit }] = await Promise.all(
    ['binding.js', 'graph/graph.js', 'data/loader.js', 'passes/plan_memory.js', 'passes/emit.js'].map(dist),
  )
  const photos = readdirSync(o.data).map((name) => path.join(o.data, name))
  // As a long dataset would: an epoch of a hundred files ends too often.
  const files = Array.from({ length: 200 }, () => photos).flat()
  const dataset = { root: o.data, classes: ['photo'], files, labels: new Int32Array(files.length), length: files.length }
  const transform = { mode: 'train', size: imageSize, scale: [0.08, 1] }
  const loader = createImageLoader(dataset, { batchSize, transform, workers: o.threads, prefetch: PREFETCH, dropLast: true })

  const graph = new Graph('normalize')
  const images = graph.input('images', [batchSize, imageSize, imageSize, 3], 'u8')
  graph.input('labels', [batchSize], 'i32')
  const constants = { mean0: 123.675, mean1: 116.28, mean2: 103.53, std0: 58.395, std1: 57.12, std2: 57.375 }
  graph.node('input_normalize', { src: images }, constants, { name: 'normalize', dtype: 'f32' })
  const plan = planMemory(graph, { weightOffsets: new Map(), weightBytes: 0, mirrors: {} })
  const native = binding()
  const memory = native.createMemory(plan.arenaBytes.map((bytes, arena) => (arena <= ARENA.activations ? bytes : 0)))
  const normalize = await native.bind(native.createPool(o.threads), memory, emit(graph, plan).bytes)
  const scalars = (await dist('runtime/scalars.js')).packScalars({})

  let batches = loader.epoch()
  return async () => {
    let next = await batches.next()
    if (next.done) {
      batches = loader.epoch()
      next = await batches.next()
    }
    await native.step(normalize, { batch: next.value.handle }, scalars)
  }
}

try {
  const step = await (o.mode === 'data' ? data() : model())
  await serve(step, { images: batchSize, warmup: o.warmup, prime: o.mode === 'data' ? PREFETCH + 1 : 0 })
  process.exit()
} catch (e) {
  say({ error: e.stack })
  process.exit(1)
}
