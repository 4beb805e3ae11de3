/** Real weights on real photos, against logits that timm gave for them. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import sharp from 'sharp'
import { afterAll, describe, expect, it } from 'vitest'
import { binding } from '../../ts/binding.js'
import { createModel, type Model, type Prediction } from '../../ts/index.js'
import { relativeError } from '../engine/harness.js'

const data = process.env['EFFNET_TEST_DATA']
const bf16 = binding().cpuInfo().avx512Bf16
const models = new Map<string, Model>()
afterAll(async () => {
  for (const model of models.values()) await model.close()
})

interface Reference {
  images: { file: string; input_png: string; logits: number[]; top5: number[] }[]
  all_shared: { file: string; label: number; top5: number[]; prob: number[] }[]
}

/** Read while tests are collected, also where they are skipped for want of the data. */
const referenceOf = (file: string): Reference =>
  data ? (JSON.parse(readFileSync(path.join(data, 'reference', file), 'utf8')) as Reference) : { images: [], all_shared: [] }

async function open(name: string, weights: string, precision: 'fp32' | 'bf16-mixed'): Promise<Model> {
  const key = `${name} ${weights} ${precision}`
  const model = models.get(key) ?? (await createModel(name as never, { pretrained: weights, precision }))
  models.set(key, model)
  return model
}

/** Counts of photos whose class is first, and among the first five. */
async function accuracy(
  model: Model,
  reference: Reference,
  size?: number,
): Promise<{ top1: number; top5: number; top: number[] }> {
  const files = reference.all_shared.map((r) => path.join(data!, 'imagenet-samples/images', r.file))
  const results = (await model.predict(files, { topK: 5, ...(size && { imageSize: size }) })) as Prediction[]
  let [top1, top5] = [0, 0]
  results.forEach((r, i) => {
    const at = r.topk.findIndex((c) => c.index === reference.all_shared[i]!.label)
    if (at === 0) top1++
    if (at >= 0) top5++
  })
  return { top1, top5, top: results.map((r) => r.topk[0]!.index) }
}

const CASES = [
  ['tf_efficientnet_b0', 'tf_efficientnet_b0.tfhub-v1.safetensors', 'b0-imagenet.json', 90, 97],
  ['tf_efficientnetv2_b0', 'tf_efficientnetv2_b0.keras-1k.safetensors', 'v2b0-imagenet.json', 91, 98],
] as const

describe.skipIf(!data)('pretrained weights (EFFNET_TEST_DATA)', () => {
  describe.each(CASES)('%s', (name, file, referenceFile, top1, top5) => {
    const weights = path.join(data ?? '', 'weights', file)
    const reference = referenceOf(referenceFile)

    it.for([
      ['fp32', 1e-5],
      ['bf16-mixed', 2.5e-2],
    ] as const)('logits of the lossless inputs in %s', async ([precision, tolerance], { skip }) => {
      skip(precision === 'bf16-mixed' && !bf16, 'no AVX512_BF16 or AMX')
      const model = await open(name, weights, precision)
      const plan = await model.session.evalPlan({ batchSize: 1, imageSize: 224 })
      for (const image of reference.images) {
        const { data: pixels } = await sharp(path.join(data!, 'reference', image.input_png))
          .removeAlpha()
          .toColourspace('srgb')
          .raw()
          .toBuffer({ resolveWithObject: true })
        const { logits } = await plan.run(plan.packInput(new Uint8Array(pixels)))
        expect(relativeError(logits, image.logits), image.file).toBeLessThan(tolerance)
      }
      plan.close()
    })

    it('logits from the JPEG files in fp32', async () => {
      const model = await open(name, weights, 'fp32')
      const files = reference.images.map((i) => path.join(data!, 'imagenet-samples/images', i.file))
      const results = (await model.predict(files, { logits: true, imageSize: 224 })) as Prediction[]
      results.forEach((r, i) => {
        expect(relativeError(r.logits!, reference.images[i]!.logits), reference.images[i]!.file).toBeLessThan(1e-4)
      })
    })

    it('top-1 and top-5 of the 100 photos in fp32 are the reference counts', async () => {
      const model = await open(name, weights, 'fp32')
      const got = await accuracy(model, reference, 224)
      expect([got.top1, got.top5]).toEqual([top1, top5])
      expect(got.top).toEqual(reference.all_shared.map((r) => r.top5[0]))
    })

    it.skipIf(!bf16)('and in bf16 within 2 photos (AVX512_BF16)', async () => {
      const got = await accuracy(await open(name, weights, 'bf16-mixed'), reference, 224)
      expect(Math.abs(got.top1 - top1)).toBeLessThanOrEqual(2)
      expect(Math.abs(got.top5 - top5)).toBeLessThanOrEqual(2)
    })
  })

  it('the weights in the package differ from the original by at most one photo', async () => {
    const model = await createModel('tf_efficientnet_b0', { pretrained: true })
    models.set('bundled', model)
    const reference = referenceOf('b0-imagenet.json')
    const got = await accuracy(model, reference)
    expect(Math.abs(got.top1 - 90)).toBeLessThanOrEqual(1)
  })
})
