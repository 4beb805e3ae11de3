/** Weights under other libraries' names, and the conventions that come with them. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, it } from 'vitest'
import { createModel, loadModel, type Naming, type Prediction } from '../../ts/index.js'
import { openSafetensors, tensorNames } from '../../ts/weights/index.js'

const folder = mkdtempSync(path.join(os.tmpdir(), 'effnet-compat-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const rotated = fileURLToPath(new URL('../fixtures/io/orientation6.jpg', import.meta.url))
const code = (c: string) => expect.objectContaining({ code: c })
const OPTIONS = { numClasses: 5, imageSize: 32, seed: 3, threads: 2 } as const

async function logits(model: Awaited<ReturnType<typeof createModel>>): Promise<Float32Array> {
  const [result] = (await model.predict(rotated, { logits: true, exifOrientation: true, cropPct: 1 })) as [Prediction]
  return result.logits!
}

describe('save under other names', () => {
  it.each([
    ['torchvision', 'efficientnet_b0'],
    ['nvidia-pytorch', 'efficientnet_widese_b0'],
  ] as const)('%s', async (naming, name) => {
    const file = path.join(folder, `${naming}.safetensors`)
    await using model = await createModel(name, { ...OPTIONS, compat: naming })
    await model.save(file, { naming })
    const { tensors } = await openSafetensors(file)
    expect(new Set(tensors.keys())).toEqual(new Set(tensorNames(model.config, naming)))
    const squeeze = [...tensors.values()].find((t) => /fc1\.weight|squeeze\.weight/.test(t.name))!
    expect(squeeze.shape.length).toBe(naming === 'torchvision' ? 4 : 2)
    await using again = await createModel(name, { pretrained: file, imageSize: 32, threads: 2 })
    expect(again.numClasses).toBe(5)
    expect(again.weights.naming).toBe(naming)
    expect(await logits(again)).toEqual(await logits(model))
  })

  it('not into a folder of ours', async () => {
    await using model = await createModel('efficientnet_b0', OPTIONS)
    await expect(model.save(path.join(folder, 'f'), { naming: 'torchvision' })).rejects.toThrow(code('EFF_INVALID_ARGUMENT'))
  })
})

describe('conventions', () => {
  const saved = async (name: string, naming: Naming): Promise<string> => {
    const file = path.join(folder, `${name}-${naming}.safetensors`)
    await using model = await createModel(name, { ...OPTIONS, compat: naming })
    await model.save(file, { naming })
    return file
  }

  it('are those of the library whose names the weights have, unless said', async () => {
    const file = await saved('efficientnetv2_s', 'torchvision')
    const options = { pretrained: file, threads: 1 }
    await using model = await createModel('efficientnetv2_s', options)
    expect(model.config).toMatchObject({ dialect: 'torchvision', bnEps: 1e-3 })
    await using said = await createModel('efficientnetv2_s', { ...options, compat: 'timm' })
    expect(said.config).toMatchObject({ dialect: 'timm', bnEps: 1e-5 })
    await expect(createModel('tf_efficientnetv2_s', options)).rejects.toThrow(code('EFF_CONFIG_VALUE'))
  })

  it('of a checkpoint are not those of any model of its name', async () => {
    const dir = path.join(folder, 'ckpt')
    await using model = await createModel('efficientnet_b0', { ...OPTIONS, compat: 'nvidia-pytorch' })
    await model.save(dir)
    await using other = await createModel('efficientnet_b0', OPTIONS)
    await expect(other.loadWeights(dir)).rejects.toThrow(code('EFF_WEIGHTS_SHAPE'))
    await using loaded = await loadModel(dir)
    expect(loaded.config).toMatchObject({ dialect: 'nvidia-pytorch', bnEps: 1e-3 })
  })

  it('of timm and torchvision leave the EXIF orientation alone', async () => {
    const results: Float32Array[] = []
    for (const compat of [undefined, 'timm', 'torchvision'] as const) {
      await using model = await createModel('efficientnet_b0', { ...OPTIONS, ...(compat ? { compat } : {}) })
      const input = readFileSync(rotated)
      const run = async (exifOrientation?: boolean) => {
        const o = { logits: true, ...(exifOrientation === undefined ? {} : { exifOrientation }) }
        return ((await model.predict(input, o)) as [Prediction])[0].logits!
      }
      const usual = await run()
      results.push(usual)
      expect(usual).toEqual(await run(compat === undefined))
      expect(usual).not.toEqual(await run(compat !== undefined))
    }
    expect(results[0]).not.toEqual(results[1])
  })
})
