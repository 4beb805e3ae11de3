/**
 * The layers of the models on CUDA kernels: on a driver without a GPU (native/cuda/fake) they run in emulation, on images scaled
 * down, each op under several orders that must give the same bits.
 *
 * CI has some models and types under two orders; EFFNET_CUDA_SHAPES=all (`npm run cuda-checks -- layers`) every model in every type,
 * training and inference, under four.
 */
import { expect, it } from 'vitest'
import { detectorGraph } from '../helpers/detector.js'
import { checkGraph, checkLayers, type LayerCheck, type LayerPrecision, storage } from '../helpers/layer_check.js'
import { describeWith, FAKE_DRIVER } from '../helpers/stand_in.js'

// Read when the backend is used first.
process.env['EFFNET_LIB_DIR'] = FAKE_DRIVER.folder

const PRECISIONS = ['f32', 'tf32', 'bf16', 'f16'] as const
const ALL = process.env['EFFNET_CUDA_SHAPES'] === 'all'
const ON = { device: 'cuda', orders: ALL ? ['3', '4', '7'] : ['7'] } as const
type Row = [model: string, precision: LayerPrecision, program: NonNullable<LayerCheck['program']>, imageSize: number]

const inCi: Row[] = [
  ...PRECISIONS.map((precision): Row => ['efficientnet_b0', precision, 'training', 40]),
  ['efficientnet_b0', 'tf32', 'inference', 40],
  ['efficientnet_b0', 'bf16', 'inference', 40],
  ['efficientnet_b4', 'bf16', 'training', 32],
  ['efficientnetv2_s', 'f32', 'training', 32],
  ['efficientnetv2_s', 'bf16', 'training', 32],
  ['efficientnetv2_s', 'f16', 'inference', 32],
]
const all = (['efficientnet_b0', 'efficientnet_b4', 'efficientnetv2_s'] as const).flatMap((model) =>
  PRECISIONS.flatMap((precision) =>
    (['training', 'inference'] as const).map(
      (program): Row => [model, precision, program, model === 'efficientnet_b0' ? 40 : 33],
    ),
  ),
)

describeWith(FAKE_DRIVER, 'layers on CUDA kernels', () => {
  it.each(ALL ? all : inCi)('%s %s: %s', { timeout: 1_200_000 }, async (...row) => {
    const [model, precision, program, imageSize] = row
    const { tried, wrong } = await checkLayers({ model, precision, program, imageSize, batchSize: 2, ...ON })
    expect(wrong).toEqual([])
    expect(tried).toBeGreaterThan(program === 'training' ? 60 : 30)
  })

  // The widths of EfficientDet D0 to D2 on odd sizes; 810 and 36 outputs are no whole vectors of a 16-bit type.
  it.each([
    ['f32', 320, 64, 810],
    ['tf32', 320, 64, 36],
    ['bf16', 320, 64, 810],
    ['f16', 40, 64, 36],
    ['bf16', 112, 88, 36],
    ['f16', 120, 88, 810],
    ['bf16', 48, 112, 36],
    ['f32', 120, 112, 36],
  ] as const)('detector %s: %i channels to %i, %i outputs', { timeout: 120_000 }, async (precision, channels, width, outputs) => {
    const graph = detectorGraph({ dtype: storage(precision), channels, width, outputs, size: [9, 7] })
    const { tried, wrong } = await checkGraph(graph, { precision, ...ON })
    expect(wrong).toEqual([])
    expect(tried).toBeGreaterThan(15)
  })
})
