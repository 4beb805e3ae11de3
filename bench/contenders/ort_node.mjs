#!/usr/bin/env node
/** onnxruntime-node on the CPU: inference of the model that ort_cpu.py exported. `--module` is where npm installed it. */
import { createRequire } from 'node:module'
import path from 'node:path'
import { options, randomSource, say, serve } from './protocol.mjs'

const o = options()
const [batchSize, imageSize] = [o['batch-size'], o['image-size']]

try {
  const require = createRequire(path.join(o.module, 'index.js'))
  const ort = require('onnxruntime-node')
  const session = await ort.InferenceSession.create(path.join(o.cache, `${o.model}-${imageSize}.onnx`), {
    executionProviders: ['cpu'],
    graphOptimizationLevel: 'all',
    intraOpNumThreads: o.threads,
    interOpNumThreads: 1,
    freeDimensionOverrides: { n: batchSize },
  })
  const random = randomSource()
  const pixels = Float32Array.from({ length: batchSize * imageSize * imageSize * 3 }, () => random() / 2 ** 31 - 1)
  const images = new ort.Tensor('float32', pixels, [batchSize, 3, imageSize, imageSize])
  const { version } = require('onnxruntime-node/package.json')
  await serve(() => session.run({ images }), { images: batchSize, versions: { 'onnxruntime-node': version }, warmup: o.warmup })
  process.exit()
} catch (e) {
  say({ error: e.stack })
  process.exit(1)
}
