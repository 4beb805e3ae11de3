/**
 * Every layer shape of a model on the GPU at the given size, one op at a time beside the float64 interpreter. A line a difference, a
 * line an op of how much of its limit it took, the number of ops and differences last. Bundled by pack.mjs: what checks them in CI is the same code on smaller images.
 *
 *   layers.mjs MODEL PRECISION IMAGE_SIZE BATCH     PRECISION: f32, tf32, bf16 or f16
 */
import { checkLayers, type LayerPrecision } from '../../test/helpers/layer_check.js'

const [model, precision, imageSize, batchSize] = process.argv.slice(2)
const { tried, wrong, used } = await checkLayers({
  model: model!,
  precision: precision as LayerPrecision,
  imageSize: Number(imageSize),
  batchSize: Number(batchSize),
  device: 'cuda',
})
for (const line of wrong) process.stdout.write(`${line}\n`)
for (const [op, share] of [...used].sort((a, b) => b[1] - a[1]))
  process.stdout.write(`${op} ${(100 * share).toFixed(0)} % of its limit\n`)
process.stdout.write(`${model} ${precision} at ${imageSize} px: ${tried} ops, ${wrong.length} tensors off\n`)
process.exitCode = wrong.length === 0 ? 0 : 1
