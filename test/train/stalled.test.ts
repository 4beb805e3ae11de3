/** Images that never arrive: a stop saves and ends the run all the same, and after a while it ends by itself. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import sharp from 'sharp'
import { beforeEach, describe, expect, it, vi } from 'vitest'
import { imageFolder } from '../../ts/data/image_folder.js'
import { NativeImageLoader } from '../../ts/data/loader.js'
import type { ImageDataset, ImageFolder } from '../../ts/data/types.js'
import type { Model } from '../../ts/model.js'
import { evaluateModel } from '../../ts/train/evaluate.js'
import { Trainer } from '../../ts/train/trainer.js'
import type { Callback, FitOptions, FitResult } from '../../ts/train/types.js'
import { smallRuns } from './helpers/small_run.js'

/** A disk: while `onRead` is set, what is read from it never comes. */
const disk = vi.hoisted(() => ({ onRead: undefined as (() => void) | undefined }))
vi.mock('../../ts/data/decode.js', async (original) => {
  const real = await original<typeof import('../../ts/data/decode.js')>()
  const decodeOther: typeof real.decodeOther = (...args) => {
    if (!disk.onRead) return real.decodeOther(...args)
    disk.onRead()
    return new Promise(() => undefined)
  }
  return { ...real, decodeOther }
})

const open = smallRuns()

let data: ImageFolder
let model: Model
let out: string
/** As the JPEG files of `data`, in a format that the engine asks for. */
let slow: ImageDataset

beforeEach(async () => {
  disk.onRead = undefined
  ;({ data, model, out } = await open())
  const png = await sharp({ create: { width: 40, height: 40, channels: 3, background: 'red' } })
    .png()
    .toBuffer()
  for (const name of data.classes) {
    mkdirSync(path.join(out, 'slow', name), { recursive: true })
    for (const n of [0, 1]) writeFileSync(path.join(out, 'slow', name, `${n}.png`), png)
  }
  slow = await imageFolder(path.join(out, 'slow'), { split: 'val' })
})

const run = () => path.join(out, 'run')
const read = (file: string) => JSON.parse(readFileSync(path.join(run(), file), 'utf8'))

/** Epochs of one step of `train`. From the end of the first on nothing arrives; what waits for it is stopped. */
async function stopped(fit: FitOptions): Promise<FitResult> {
  const hang: Callback = {
    name: 'hang',
    onEpochEnd() {
      disk.onRead = () => void setImmediate(() => trainer.stop('SIGTERM'))
    },
  }
  const trainer: Trainer = new Trainer({ model, batchSize: 4, maxEpochs: 3, lr: 1e-3, outDir: run(), callbacks: [hang] })
  return await trainer.fit(fit)
}

describe('a stop while no image arrives', () => {
  it('saves what was trained', async () => {
    expect(await stopped({ train: slow })).toMatchObject({ status: 'interrupted', reason: 'SIGTERM', step: 1 })
    expect(read('checkpoints/last/state.json').step).toBe(1)
    expect(read('status.json').state).toBe('interrupted')
  })

  it('saves it in a validation too', async () => {
    const result = await stopped({ train: data.train, val: slow })
    expect(result).toMatchObject({ status: 'interrupted', reason: 'SIGTERM', step: 4 })
    expect(read('checkpoints/last/state.json').step).toBe(4)
  })

  it('ends an evaluation', async () => {
    const abort = new AbortController()
    disk.onRead = () => void setImmediate(() => abort.abort())
    const evaluation = evaluateModel(model, { data: slow, imageSize: 32, signal: abort.signal })
    await expect(evaluation).rejects.toThrow(expect.objectContaining({ code: 'EFF_ABORTED' }))
  })
})

describe('a loader', () => {
  const transform = { mode: 'eval', size: 32 } as const

  it('gives up where none comes for too long', async () => {
    disk.onRead = () => undefined
    const loader = new NativeImageLoader(slow, { batchSize: 4, transform }, 100)
    await expect(loader.epoch().next()).rejects.toMatchObject({ code: 'EFF_DATA_STALLED', message: /slow: no images arrived/ })
    loader.close()
  })

  it('has time for each image', async () => {
    const loader = new NativeImageLoader(slow, { batchSize: 4, transform })
    const { value } = await loader.epoch().next()
    expect(value).toMatchObject({ count: 4 })
    loader.close()
  })
})
