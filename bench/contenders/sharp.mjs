#!/usr/bin/env node
/**
 * sharp: decode, random resized crop, flip, and normalisation to FP32 of whole batches. `--jobs` images are in work at a time,
 * each with `--concurrency` threads of libvips; UV_THREADPOOL_SIZE must not be below the jobs.
 */
import { readdirSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import sharp from 'sharp'
import { options, randomSource, say, serve } from './protocol.mjs'

const o = options()
const [batchSize, size] = [o['batch-size'], o['image-size']]
sharp.concurrency(o.concurrency)
sharp.cache(false)
const files = readdirSync(o.data).map((name) => path.join(o.data, name))
const random = randomSource()
const uniform = () => random() / 2 ** 32

/** torchvision's RandomResizedCrop.get_params. */
function randomCrop(width, height) {
  for (let attempt = 0; attempt < 10; attempt++) {
    const area = width * height * (0.08 + 0.92 * uniform())
    const ratio = Math.exp(Math.log(3 / 4) + (Math.log(4 / 3) - Math.log(3 / 4)) * uniform())
    const [w, h] = [Math.round(Math.sqrt(area * ratio)), Math.round(Math.sqrt(area / ratio))]
    if (w > 0 && w <= width && h > 0 && h <= height) {
      return { left: Math.floor(uniform() * (width - w + 1)), top: Math.floor(uniform() * (height - h + 1)), width: w, height: h }
    }
  }
  const side = Math.min(width, height)
  return { left: (width - side) >> 1, top: (height - side) >> 1, width: side, height: side }
}

// (pixel - mean) / std of each channel.
const tables = [
  [0.485, 0.229],
  [0.456, 0.224],
  [0.406, 0.225],
].map(([mean, std]) => Float32Array.from({ length: 256 }, (_, v) => (v / 255 - mean) / std))

const batch = new Float32Array(batchSize * size * size * 3)

async function one(slot) {
  const bytes = await readFile(files[random() % files.length])
  const image = sharp(bytes)
  const { width, height } = await image.metadata()
  image.extract(randomCrop(width, height)).resize(size, size, { fit: 'fill', kernel: 'cubic' })
  if (random() & 1) image.flop()
  const pixels = await image.toColourspace('srgb').removeAlpha().raw().toBuffer()
  const [r, g, b] = tables
  for (let i = 0, at = slot * size * size * 3; i < pixels.length; i += 3, at += 3) {
    batch[at] = r[pixels[i]]
    batch[at + 1] = g[pixels[i + 1]]
    batch[at + 2] = b[pixels[i + 2]]
  }
}

async function step() {
  let slot = 0
  const worker = async () => {
    while (slot < batchSize) await one(slot++)
  }
  await Promise.all(Array.from({ length: o.jobs }, worker))
}

try {
  const versions = { sharp: sharp.versions.sharp, libvips: sharp.versions.vips }
  await serve(step, { images: batchSize, versions, warmup: o.warmup })
  process.exit()
} catch (e) {
  say({ error: e.stack })
  process.exit(1)
}
