/** What images decoded on a GPU take of a model's memory limit, on a driver and an nvJPEG without a GPU (native/cuda/fake). */
import { mkdtempSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, expect, it } from 'vitest'
import { binding } from '../../ts/binding.js'
import { type DataBackend, evaluateModel, imageFolder } from '../../ts/index.js'
import { Model } from '../../ts/model.js'
import { Session } from '../../ts/runtime/session.js'
import { BLOCK, smallConfig } from '../helpers/small_config.js'
import { describeWith, fakeLibraries } from '../helpers/stand_in.js'
import { makeData } from '../train/helpers/data.js'

const LIBRARIES = fakeLibraries('libnvjpeg.so.13')
// Read when the backend is used first.
process.env['EFFNET_LIB_DIR'] = LIBRARIES.folder
process.env['FAKE_NVJPEG_MEMORY'] = '1000000'

const scratch = mkdtempSync(path.join(os.tmpdir(), 'effnet-cuda-input-limit-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

const config = smallConfig('efficientnet_b0', [BLOCK], { imageSize: 32 })

describeWith(LIBRARIES, 'the limit of a model', () => {
  it('counts what decodes its images, and refuses it in numbers and with the mend', async () => {
    const { val } = await imageFolder(await makeData(path.join(scratch, 'data'), { train: 1, val: 1, side: 40 }))
    /** The most that was in use, bytes. */
    const evaluated = async (memoryLimit: string, dataBackend: DataBackend): Promise<number> => {
      const session = await Session.create({ config, precision: 'fp32', device: 'cuda', memoryLimit })
      const model = new Model(session, config, { kind: 'random', matched: 0, total: session.slots.length }, undefined)
      let most = 0
      const onProgress = (): void => {
        most = Math.max(most, binding().memoryBudget(session.memory).used)
      }
      try {
        await evaluateModel(model, { data: val!, batchSize: 3, imageSize: 32, dataBackend, onProgress })
      } finally {
        await model.close()
      }
      return most
    }
    // A sixteenth of the limit for decoded images, nvJPEG's own for three of them, batches.
    const beside = (await evaluated('400MB', 'gpu')) - (await evaluated('400MB', 'cpu'))
    expect(beside).toBeGreaterThan(400e6 / 16 + 3e6)
    expect(beside).toBeLessThan(400e6 / 16 + 3e6 + 1e6)
    const mend = "dataBackend: 'cpu', which needs none of it, a smaller batch, or a larger memoryLimit"
    await expect(evaluated('10MB', 'gpu')).rejects.toMatchObject({
      code: 'EFF_OOM',
      message: expect.stringMatching(
        /^16\.0 MiB were needed; the limit of 9\.5 MiB leaves \d\.\d MiB, for images decoded on the GPU, which take 16\.\d MiB and the decoder's own memory$/,
      ),
      hint: mend,
    })
    // nvJPEG's comes with the first batch.
    await expect(evaluated('19MB', 'gpu')).rejects.toMatchObject({
      code: 'EFF_OOM',
      message: expect.stringMatching(/^2\.9 MiB were needed; the limit of 18\.1 MiB leaves .*, for images decoded on the GPU/),
      hint: mend,
    })
    await evaluated('10MB', 'cpu')
  }, 120_000)
})
