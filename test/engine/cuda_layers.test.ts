/**
 * The layers of the models on CUDA kernels: on a driver without a GPU (native/cuda/fake) they run in emulation, on images scaled
 * down.
 */
import { expect, it } from 'vitest'
import { detectorGraph } from '../helpers/detector.js'
import { checkGraph, checkLayers } from '../helpers/layer_check.js'
import { describeWith, FAKE_DRIVER } from '../helpers/stand_in.js'

// Read when the backend is used first.
process.env['EFFNET_LIB_DIR'] = FAKE_DRIVER.folder

describeWith(FAKE_DRIVER, 'layers on CUDA kernels', () => {
  it.each([
    ['efficientnet_b0', 'f32', 40],
    ['efficientnet_b0', 'bf16', 40],
    ['efficientnet_b0', 'f16', 40],
    ['efficientnet_b4', 'bf16', 32],
    ['efficientnetv2_s', 'f32', 32],
    ['efficientnetv2_s', 'bf16', 32],
  ] as const)('%s %s: training', { timeout: 180_000 }, async (model, dtype, imageSize) => {
    const { tried, wrong } = await checkLayers({ model, dtype, imageSize, batchSize: 2, device: 'cuda' })
    expect(wrong).toEqual([])
    expect(tried).toBeGreaterThan(60)
  })

  // The widths of EfficientDet D0 to D2 on odd sizes; 810 and 36 outputs are no whole vectors of a 16-bit type.
  it.each([
    ['f32', 320, 64, 810],
    ['bf16', 320, 64, 810],
    ['f16', 40, 64, 36],
    ['bf16', 112, 88, 36],
    ['f16', 120, 88, 810],
    ['bf16', 48, 112, 36],
    ['f32', 120, 112, 36],
  ] as const)('detector %s: %i channels to %i, %i outputs', { timeout: 120_000 }, async (dtype, channels, width, outputs) => {
    const graph = detectorGraph({ dtype, channels, width, outputs, size: [9, 7] })
    const { tried, wrong } = await checkGraph(graph, dtype, 'cuda')
    expect(wrong).toEqual([])
    expect(tried).toBeGreaterThan(15)
  })
})
