import { describe, expect, test } from 'vitest'
import { EffnetError } from '../../ts/errors.js'
import { elements } from '../../ts/graph/types.js'
import { evalResize, getModelConfig, listModels, modelInfo, modelParams, networkOf } from '../../ts/nn/index.js'
import { SIZES } from './sizes.js'

const errorOf = (f: () => unknown): EffnetError => {
  try {
    f()
  } catch (e) {
    if (e instanceof EffnetError) return e
    throw e
  }
  throw new Error('nothing was thrown')
}

describe('sizes of every model', () => {
  test.each(SIZES)('$name at $size', ({ name, size, params, stats, tensors, macs }) => {
    for (const full of [name, `tf_${name}`]) {
      const info = modelInfo(full, { imageSize: size })
      expect([info.params, info.bufferElements, info.macs]).toEqual([params, stats, macs])
      const defs = modelParams(getModelConfig(full))
      const norms = defs.filter((p) => p.info.kind === 'bn_scale').length
      expect(defs.length + norms).toBe(tensors)
      for (const p of defs) expect(elements(p.shape)).toBe(elements(p.info.torchShape))
    }
  })

  test('each architecture has a row', () => {
    const plain = listModels().filter((n) => !n.startsWith('tf_'))
    expect(new Set(SIZES.map((r) => r.name))).toEqual(new Set(plain))
    expect(listModels().length).toBe(2 * plain.length)
  })

  test.each([
    ['efficientnet_b5', 48, [24, 40, 64, 128, 176, 304, 512], [3, 5, 5, 7, 7, 9, 3], 2048],
    ['efficientnet_l2', 136, [72, 104, 176, 344, 480, 824, 1376], [6, 11, 11, 16, 16, 22, 6], 5504],
    ['efficientnet_lite4', 32, [24, 32, 56, 112, 160, 272, 448], [1, 4, 4, 6, 6, 8, 1], 1280],
    ['efficientnetv2_b2', 32, [16, 32, 56, 104, 120, 208], [2, 3, 3, 4, 6, 10], 1408],
    ['efficientnetv2_b3', 40, [16, 40, 56, 112, 136, 232], [2, 3, 3, 5, 7, 12], 1536],
  ])('widths and depths of %s', (name, stem, outs, repeats, head) => {
    const c = getModelConfig(name)
    expect(c.stages.map((s) => s.out)).toEqual(outs)
    expect(c.stages.map((s) => s.repeats)).toEqual(repeats)
    expect([c.stem, c.head]).toEqual([stem, head])
  })

  test('squeeze widths of B0 and WideSE-B0', () => {
    const reduced = (name: string): number[] =>
      networkOf(getModelConfig(name)).blocks.flatMap((b) => b.layers.flatMap((l) => (l.type === 'se' ? [l.reduced] : [])))
    expect(reduced('efficientnet_b0')).toEqual([8, 4, 6, 6, 10, 10, 20, 20, 20, 28, 28, 28, 48, 48, 48, 48])
    expect(reduced('efficientnet_widese_b0').slice(0, 3)).toEqual([8, 24, 36])
  })

  test('a head of another size', () => {
    expect(modelInfo('efficientnet_b0', { numClasses: 10 }).params).toBe(5288548 - 990 * 1281)
  })
})

describe('dialects', () => {
  const constants = (name: string, dialect?: 'timm' | 'torchvision' | 'nvidia-tf2' | 'nvidia-pytorch') => {
    const c = getModelConfig(name, dialect ? { dialect } : {})
    return [c.padding, c.bnEps, c.bnMomentum, c.dropPathRate]
  }

  test.each([
    ['efficientnet_b0', undefined, 'symmetric', 1e-5, 0.1, 0.2],
    ['tf_efficientnet_b0', undefined, 'same', 1e-3, 0.1, 0.2],
    ['tf_efficientnet_lite0', undefined, 'same', 1e-3, 0.1, 0.2],
    ['tf_efficientnetv2_s', undefined, 'same', 1e-3, 0.1, 0.2],
    ['efficientnet_widese_b0', undefined, 'symmetric', 1e-3, 0.01, 0],
    ['efficientnet_widese_b4', undefined, 'symmetric', 1e-3, 0.01, 0.2],
    ['efficientnet_b4', 'torchvision', 'symmetric', 1e-5, 0.1, 0.2],
    ['efficientnet_b5', 'torchvision', 'symmetric', 1e-3, 0.01, 0.2],
    ['efficientnetv2_m', 'torchvision', 'symmetric', 1e-3, 0.1, 0.2],
    ['efficientnet_b4', 'nvidia-tf2', 'same', 1e-3, 0.01, 0.2],
    ['tf_efficientnetv2_s', 'nvidia-tf2', 'same', 1e-3, 0.01, 0.2],
    ['efficientnet_b0', 'nvidia-pytorch', 'symmetric', 1e-3, 0.01, 0],
    ['efficientnet_b4', 'nvidia-pytorch', 'symmetric', 1e-3, 0.01, 0.2],
  ] as const)('%s, %s', (name, dialect, ...expected) => expect(constants(name, dialect)).toEqual(expected))

  test('stochastic depth grows linearly over all blocks', () => {
    const rates = networkOf(getModelConfig('efficientnet_b0')).blocks.map((b) => [b.residual, b.dropPathRate] as const)
    expect(rates.at(-2)).toEqual([true, (0.2 * 14) / 16])
    expect(rates[0]).toEqual([false, 0])
    rates.forEach(([residual, p], b) => {
      expect(p).toBeCloseTo(residual ? (0.2 * b) / 16 : 0, 12)
    })
  })

  test.each([
    ['tf_efficientnet_b0', 'torchvision'],
    ['efficientnet_lite0', 'torchvision'],
    ['efficientnetv2_xl', 'torchvision'],
    ['efficientnetv2_s', 'nvidia-pytorch'],
    ['efficientnet_widese_b0', 'nvidia-tf2'],
  ] as const)('%s is not in %s', (name, dialect) => {
    const e = errorOf(() => getModelConfig(name, { dialect }))
    expect(e.code).toBe('EFF_CONFIG_VALUE')
    expect(e.hint).toMatch(/dialect/)
  })
})

describe('preprocessing', () => {
  test.each([
    ['tf_efficientnet_b0', 224, 224, 0.875, 'center', 'bicubic', 0.485, 256],
    ['tf_efficientnet_b3', 300, 300, 0.904, 'center', 'bicubic', 0.485, 331],
    ['tf_efficientnetv2_b0', 192, 224, 0.875, 'center', 'bicubic', 0.485, 256],
    ['tf_efficientnetv2_s', 300, 384, 1, 'center', 'bicubic', 0.5, 384],
    ['tf_efficientnetv2_xl', 384, 512, 1, 'squash', 'bicubic', 0.5, 512],
    ['tf_efficientnet_lite3', 300, 300, 0.904, 'center', 'bilinear', 0.5, 331],
    ['tf_efficientnet_lite0', 224, 224, 0.875, 'center', 'bicubic', 0.5, 256],
    ['efficientnet_lite3', 280, 280, 0.904, 'center', 'bicubic', 0.485, 309],
    ['tf_efficientnet_b2.ap_in1k', 260, 260, 0.89, 'center', 'bicubic', 0.5, 292],
    ['efficientnet_b4.ra2_in1k', 320, 384, 1, 'center', 'bicubic', 0.485, 384],
    ['tf_efficientnet_l2.ns_jft_in1k_475', 475, 475, 0.936, 'center', 'bicubic', 0.485, 507],
  ])('%s', (name, size, evalSize, cropPct, cropMode, interpolation, mean, resize) => {
    const { imageSize, evalSize: evaluated, preprocessing: p } = getModelConfig(name)
    expect([imageSize, evaluated, p.cropPct, p.cropMode, p.interpolation, p.mean[0], p.evalResize]).toEqual([
      size,
      evalSize,
      cropPct,
      cropMode,
      interpolation,
      mean,
      resize,
    ])
  })

  test('torchvision names the short side, NVIDIA leaves 32 pixels', () => {
    const tv = getModelConfig('efficientnet_b3', { dialect: 'torchvision' })
    expect([tv.evalSize, tv.preprocessing.evalResize, tv.preprocessing.cropPct]).toEqual([300, 320, 300 / 320])
    expect(getModelConfig('efficientnet_b1.imagenet1k_v1', { dialect: 'torchvision' }).preprocessing).toMatchObject({
      evalResize: 256,
      interpolation: 'bicubic',
    })
    const pyt = getModelConfig('efficientnet_b4', { dialect: 'nvidia-pytorch' })
    expect([pyt.evalSize, pyt.preprocessing.evalResize]).toEqual([380, 412])
  })

  test('another evaluation size rounds', () => {
    const c = getModelConfig('tf_efficientnet_b0')
    expect([evalResize(c, 224), evalResize(c, 64), evalResize(c, 96), evalResize(c, 64, 1)]).toEqual([256, 73, 110, 64])
    expect(getModelConfig('tf_efficientnet_b0', { imageSize: 96 }).preprocessing.evalResize).toBe(110)
  })

  test('21k weight sets have their own class count', () => {
    expect(getModelConfig('tf_efficientnetv2_s.in21k').numClasses).toBe(21843)
  })
})

describe('names', () => {
  test('globs', () => {
    expect(listModels('tf_efficientnetv2_b?')).toEqual([0, 1, 2, 3].map((i) => `tf_efficientnetv2_b${i}`))
    expect(listModels('*lite*').length).toBe(10)
    expect(listModels('b0')).toEqual([])
  })

  test.each([
    ['efficientnet_bo', 'efficientnet_b0'],
    ['efficientnet-b0', 'efficientnet_b0'],
    ['efficientnet_v2_s', 'efficientnetv2_s'],
    ['tf_efficientnet_lit0', 'tf_efficientnet_lite0'],
  ])('%s is unknown, %s near', (name, near) => {
    const e = errorOf(() => getModelConfig(name))
    expect(e.code).toBe('EFF_MODEL_UNKNOWN')
    expect(e.hint).toContain(near)
    expect(e.message).toContain(name)
  })

  test('an unknown weight set names those that exist', () => {
    const e = errorOf(() => getModelConfig('efficientnet_b0.nope'))
    expect([e.code, e.hint]).toEqual(['EFF_MODEL_UNKNOWN', 'one of efficientnet_b0.ra_in1k'])
  })

  test.each([{ numClasses: 0 }, { numClasses: 1.5 }, { imageSize: 16 }, { dropRate: 1 }, { bnEps: 0 }])('refuses %o', (o) => {
    expect(errorOf(() => getModelConfig('efficientnet_b0', o)).code).toBe('EFF_CONFIG_VALUE')
  })
})
