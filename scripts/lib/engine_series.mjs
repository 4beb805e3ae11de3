#!/usr/bin/env node
/**
 * Series that run inside the engine's process; started as a child by scripts/reliability.mjs, so that a crash is an exit code.
 *
 *   node scripts/lib/engine_series.mjs fuzz COUNT SEED   mutated plans and JPEG files, COUNT of each: every one is accepted or
 *                                                        refused with its code
 *   node scripts/lib/engine_series.mjs headers COUNT SEED   mutated JSON headers of safetensors files: header_series.mjs
 *   node scripts/lib/engine_series.mjs soak COUNT        COUNT training steps, COUNT predictors made and closed: native
 *                                                        byte counters level to the byte, resident memory within 5 %
 *
 * Prints one JSON line.
 */
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { binding } from '../../dist/binding.js'
import { createModel } from '../../dist/index.js'
import { getModelConfig, modelParams } from '../../dist/nn/index.js'
import { emit } from '../../dist/passes/emit.js'
import { planMemory } from '../../dist/passes/plan_memory.js'
import { evalProgram } from '../../dist/runtime/programs.js'
import { Session } from '../../dist/runtime/session.js'
import { weightsLayout } from '../../dist/runtime/weights_layout.js'
import { headerLength, parseHeader } from '../../dist/weights/safetensors.js'
import { headerSeries } from './header_series.mjs'
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
  const folder = path.join(root, 'models/demo/val/Forest')
  const photos = readdirSync(folder).map((name) => readFileSync(path.join(folder, name)))
  return {
    plans: await mutations([plan], ['EFF_PLAN_INVALID'], (b) => native.verifyPlan(b)),
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

function headers() {
  const weights = readFileSync(path.join(root, 'models/pretrained/tf_efficientnet_b0.safetensors'))
  const length = Number(weights.readBigUInt64LE(0))
  const large = { text: weights.toString('utf8', 8, 8 + length), dataBytes: weights.length - 8 - length }
  return headerSeries(count, Number(seedText ?? 1), large, { headerLength, parseHeader })
}

/** A leak on purpose, so that a run can show that it would be seen: EFFNET_FAULT=leak:BYTES a step of native memory that the counters know, leak-rss:BYTES of memory that they do not. */
function plantedLeak() {
  const [, kind, bytes] = /^(leak|leak-rss):(\d+)$/.exec(process.env.EFFNET_FAULT ?? '') ?? []
  const kept = []
  if (kind === 'leak') return () => kept.push(binding().createMemory([Number(bytes)]))
  if (kind === 'leak-rss') return () => kept.push(Buffer.alloc(Number(bytes), 1))
  return () => {}
}

/** Linux returns what malloc keeps only when asked; a collection and a pause let finalizers run. */
async function settled() {
  for (let i = 0; i < 3; i++) {
    globalThis.gc?.()
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}

/** Training steps in one session, and after each a predictor by the public API: opened, used, closed. */
async function soak() {
  const native = binding()
  const leak = plantedLeak()
  const folder = path.join(root, 'models/demo/val/Forest')
  const photo = path.join(folder, readdirSync(folder).sort()[0])
  const session = await Session.create({ config, precision: 'fp32', threads: 2 })
  for (const slot of session.slots) {
    const one = slot.info.kind === 'bn_scale' || slot.info.kind === 'bn_var'
    session.write(
      slot.name,
      new Float32Array(slot.size).map((_, i) => (one ? 1 : 0.02 * Math.sin(i))),
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
    const model = await createModel('tf_efficientnet_b0', { pretrained: true, threads: 1, imageSize: 32 })
    await model.predict(photo, { topK: 1 })
    await model.close()
  }
  let step = 0
  const run = async (cycles) => {
    for (let i = 0; i < cycles; i++, step++) {
      await plan.step(input, { lr: 1e-4, step })
      await predictor()
      leak()
    }
    await settled()
    return { ...native.memoryUsage(), rss: process.memoryUsage().rss, external: process.memoryUsage().external }
  }
  const before = await run(Math.max(10, Math.floor(count / 5)))
  const after = await run(count)
  session.close()
  for (const kind of ['arenas', 'kernels', 'batches', 'handles']) {
    if (after[kind] !== before[kind])
      throw new Error(`native ${kind} went from ${before[kind]} to ${after[kind]} in ${count} cycles`)
  }
  const growth = after.rss / before.rss - 1
  // A short run is still warming caches up.
  const most = count >= 1000 ? 0.05 : 0.25
  if (growth > most) throw new Error(`resident memory grew by ${(100 * growth).toFixed(1)} % over ${count} cycles`)
  const mb = (bytes) => Math.round(bytes / 1e5) / 10
  return {
    steps: count,
    predictors: count,
    native_bytes: after.arenas + after.kernels + after.batches,
    handles: after.handles,
    rss_mb: [mb(before.rss), mb(after.rss)],
    rss_growth: Math.round(growth * 1e4) / 1e4,
  }
}

const result = await { fuzz, headers, soak }[kind]()
process.stdout.write(`${JSON.stringify(result)}\n`)
