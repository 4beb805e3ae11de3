import { describe, expect, it } from 'vitest'
import { binding } from '../../ts/binding.js'
import { evalGeometry, getModelConfig } from '../../ts/nn/index.js'

describe('squash', () => {
  it('keeps the whole image where a crop loses its ends', async () => {
    // Columns 0..39 red, 40..119 green, 120..159 blue; 160 x 80.
    const [width, height] = [160, 80]
    const data = new Uint8Array(width * height * 3)
    for (let i = 0; i < width * height; i++) data[3 * i + (i % width < 40 ? 0 : i % width < 120 ? 1 : 2)] = 255
    const ends = async (squash: boolean): Promise<number[][]> => {
      const { data: out } = await binding().transformPixels(
        { width, height, data },
        { mode: 'eval', size: 32, resizeTo: 32, squash },
      )
      const row = 16 * 32
      return [row, row + 31].map((p) => [...out.subarray(3 * p, 3 * p + 3)])
    }
    expect(await ends(true)).toEqual([
      [255, 0, 0],
      [0, 0, 255],
    ])
    for (const pixel of await ends(false)) expect(pixel[1]).toBeGreaterThan(200)
  })

  it('is what the models do that were evaluated so, unless a crop is asked for', () => {
    const config = getModelConfig('tf_efficientnetv2_m')
    expect(evalGeometry(config, 480)).toEqual({ resizeTo: 480, squash: true })
    expect(evalGeometry(config, 480, 0.875)).toEqual({ resizeTo: 549, squash: false })
    expect(evalGeometry(getModelConfig('tf_efficientnet_b0'), 224)).toEqual({ resizeTo: 256, squash: false })
  })
})
