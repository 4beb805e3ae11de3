/** Networks with real weights on real images, in float64, against PyTorch's FP32 logits (recorded beside the images). */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, test } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import { interpret } from '../../ts/graph/interpreter.js'
import { buildEfficientNet, getModelConfig } from '../../ts/nn/index.js'
import { packageRoot } from '../../ts/paths.js'
import { readWeights } from '../helpers/tensors.js'

const data = process.env['EFFNET_TEST_DATA']

interface Recorded {
  weights: string
  images: { input_png: string; logits: number[]; top5: number[] }[]
}
const recorded = (name: string): Recorded => JSON.parse(readFileSync(path.join(data!, 'reference', name), 'utf8')) as Recorded

async function pixels(file: string): Promise<Float64Array> {
  const { default: sharp } = await import('sharp')
  const raw = await sharp(path.join(data!, 'reference', file))
    .removeAlpha()
    .toColourspace('srgb')
    .raw()
    .toBuffer()
  expect(raw.length).toBe(224 * 224 * 3)
  return Float64Array.from(raw)
}

async function logitsOf(name: string, file: string, images: Float64Array): Promise<Float64Array> {
  const config = getModelConfig(name)
  const graph = new Graph(name)
  const net = buildEfficientNet(graph, config, { batch: 1, height: 224, width: 224, mode: 'eval', dtype: 'f32' })
  const values = (await readWeights(file, config)).set('images', images)
  return interpret(graph, { values, keep: (t) => t === net.logits }).get(net.logits.name)!
}

const topFive = (logits: Float64Array): number[] =>
  [...logits.keys()].sort((a, b) => logits[b]! - logits[a]! || a - b).slice(0, 5)
const relative = (a: Float64Array, b: readonly number[]): number =>
  Math.max(...b.map((v, i) => Math.abs(v - a[i]!))) / Math.max(...b.map(Math.abs))

describe.skipIf(!data)('logits of recorded images (EFFNET_TEST_DATA)', () => {
  // One image a model: the engine's own parity tests run them all.
  test.each([
    ['tf_efficientnet_b0', 'b0-imagenet.json', 0],
    ['tf_efficientnetv2_b0', 'v2b0-imagenet.json', 1],
  ])('%s', async (name, json, which) => {
    const { weights, images } = recorded(json)
    const image = images[which]!
    const logits = await logitsOf(name, path.join(data!, 'weights', weights), await pixels(image.input_png))
    expect(relative(logits, image.logits)).toBeLessThan(1e-5)
    expect(topFive(logits)).toEqual(image.top5)
  })

  test('the bundled fp16 weights of B0 stay close', async () => {
    const image = recorded('b0-imagenet.json').images[2]!
    const file = path.join(packageRoot(), 'models/pretrained/tf_efficientnet_b0.safetensors')
    const logits = await logitsOf('tf_efficientnet_b0', file, await pixels(image.input_png))
    expect(relative(logits, image.logits)).toBeLessThan(5e-3)
    expect(topFive(logits)[0]).toBe(image.top5[0])
  })
})
