#!/usr/bin/env node
/**
 * Series that run inside the engine's process; started as a child by scripts/reliability.mjs, so that a crash is an exit code.
 *
 *   node scripts/lib/engine_series.mjs fuzz COUNT SEED   mutated plans, safetensors headers and JPEG files, COUNT of each:
 *                                                        every one is accepted or refused with its code
 *   node scripts/lib/engine_series.mjs soak COUNT        COUNT training steps, COUNT / 20 predictors made and closed: native
 *                                                        byte counters level to the byte, resident memory within 5 %
 *
 * Prints one JSON line.
 */
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { binding } from '../../dist/binding.js'
import { getModelConfig, modelParams } from '../../dist/nn/index.js'
import { emit } from '../../dist/passes/emit.js'
import { planMemory } from '../../dist/passes/plan_memory.js'
import { evalProgram } from '../../dist/runtime/programs.js'
import { Session } from '../../dist/runtime/session.js'
import { weightsLayout } from '../../dist/runtime/weights_layout.js'
import { headerLength, parseHeader } from '../../dist/weights/safetensors.js'
import { root } from './run.mjs'

const [kind, countText, seedText] = process.argv.slice(2)
const count = Number(countText)
const config = getModelConfig('efficientnet_b0', { numClasses: 5 })

let state = Number(seedText ?? 1) >>> 0
const random = (below) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return Math.floor((state / 4294967296) * below)
}

/** Some bytes changed, sometimes cut short. */
function mutate(bytes) {
  const copy = Buffer.from(random(8) === 0 ? bytes.subarray(0, random(bytes.length)) : bytes)
  for (let k = 0; k < 1 + random(6) && copy.length > 0; k++) copy[random(copy.length)] = random(256)
  return copy
}

/** `refused` by code; anything but a code of ours ends the series. */
async function mutations(seeds, codes, attempt) {
  const refused = {}
  for (let i = 0; i < count; i++) {
    const bytes = mutate(seeds[i % seeds.length])
    try {
      await attempt(bytes)
    } catch (e) {
      if (!codes.includes(e.code)) throw new Error(`mutation ${i}: ${e.code ?? ''} ${e.message}`, { cause: e })
      refused[e.code] = (refused[e.code] ?? 0) + 1
    }
  }
  return { tried: count, refused }
}

async function fuzz() {
  const native = binding()
  const layout = weightsLayout(modelParams(config))
  const { graph } = evalProgram(config, { batchSize: 1, imageSize: 32, dtype: 'f32', target: { device: 'cpu' } })
  const plan = emit(graph, planMemory(graph, { weightOffsets: layout.offsets, weightBytes: layout.bytes })).bytes
  const weights = readFileSync(path.join(root, 'models/pretrained/tf_efficientnet_b0.safetensors'))
  const header = weights.subarray(0, 8 + Number(weights.readBigUInt64LE(0)))
  const folder = path.join(root, 'models/demo/val/Forest')
  const photos = readdirSync(folder).map((name) => readFileSync(path.join(folder, name)))
  return {
    plans: await mutations([plan], ['EFF_PLAN_INVALID'], (b) => native.verifyPlan(b)),
    safetensors: await mutations([header], ['EFF_WEIGHTS_CORRUPT'], (b) => {
      const length = headerLength(b.subarray(0, 8), weights.length, 'fuzz')
      parseHeader(b.subarray(8, 8 + length), weights.length, 'fuzz')
    }),
    images: await mutations(photos, ['EFF_DATA_DECODE', 'EFF_DATA_LIMIT'], (b) =>
      native.decodeJpeg(b, {
        mode: random(2) === 0 ? 'eval' : 'train',
        size: 32,
        resizeTo: 37,
        maxPixels: 1e6,
        seed: random(1e6),
      }),
    ),
  }
}

async function soak() {
  const native = binding()
  const session = await Session.create({ config, precision: 'fp32', threads: 2 })
  for (const slot of session.slots) {
    const value = slot.info.kind === 'bn_scale' || slot.info.kind === 'bn_var' ? 1 : 0.02
    session.write(
      slot.name,
      new Float32Array(slot.size).map((_, i) => (value === 1 ? 1 : value * Math.sin(i))),
    )
  }
  const plan = await session.trainPlan({
    batchSize: 4,
    imageSize: 32,
    optimizer: { name: 'sgd' },
    labelSmoothing: 0,
    dropRate: 0,
    dropPathRate: 0,
    clip: false,
    ema: false,
  })
  const input = plan.packInput(
    Uint8Array.from({ length: 4 * 32 * 32 * 3 }, () => random(256)),
    [0, 1, 2, 3],
  )
  const predictor = async () => {
    const other = await Session.create({ config, precision: 'fp32', threads: 1 })
    const evaluation = await other.evalPlan({ batchSize: 1, imageSize: 32 })
    await evaluation.run(evaluation.packInput(new Uint8Array(32 * 32 * 3)))
    other.close()
  }
  const run = async (steps) => {
    for (let step = 0; step < steps; step++) {
      await plan.step(input, { lr: 1e-4, step })
      if (step % 20 === 0) await predictor()
    }
    globalThis.gc?.()
    await new Promise((resolve) => setTimeout(resolve, 200))
    const { arenas, kernels, batches } = native.memoryUsage()
    return { arenas, kernels, batches, rss: process.memoryUsage().rss }
  }
  const before = await run(Math.max(40, Math.floor(count / 4)))
  const after = await run(count)
  session.close()
  for (const kind of ['arenas', 'kernels', 'batches']) {
    if (after[kind] !== before[kind]) throw new Error(`native ${kind} went from ${before[kind]} to ${after[kind]} bytes`)
  }
  const growth = after.rss / before.rss - 1
  // A short run is still warming caches up.
  if (count >= 1000 && growth > 0.05)
    throw new Error(`resident memory grew by ${(100 * growth).toFixed(1)} % over ${count} steps`)
  return { steps: count, predictors: Math.ceil(count / 20), native_bytes: after.arenas + after.kernels, rss_growth: growth }
}

const result = kind === 'fuzz' ? await fuzz() : await soak()
process.stdout.write(`${JSON.stringify(result)}\n`)
