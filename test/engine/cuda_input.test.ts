/**
 * Images decoded on the GPU (`dataBackend: 'gpu'`) behind the public API, on a driver and an nvJPEG without a GPU (native/cuda/fake),
 * which decodes as the CPU does. The photos are small enough that the CPU's pipeline decodes them at full size too: the batches are
 * then the same bits, and so is everything that follows.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import sharp from 'sharp'
import { afterAll, beforeAll, expect, it } from 'vitest'
import {
  createModel,
  type DataBackend,
  evaluateModel,
  type FitResult,
  type ImageFolder,
  imageFolder,
  type Model,
  Trainer,
  type TrainerOptions,
  type WarningEvent,
} from '../../ts/index.js'
import { describeWith, fakeLibraries } from '../helpers/stand_in.js'
import { makeData } from '../train/helpers/data.js'

const LIBRARIES = fakeLibraries('libnvjpeg.so.13')
// Read when the backend is used first.
process.env['EFFNET_LIB_DIR'] = LIBRARIES.folder
process.env['EFFNET_CUDA_PROVIDER'] = 'own'

const scratch = mkdtempSync(path.join(os.tmpdir(), 'effnet-cuda-input-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

const open = (device: 'cpu' | 'cuda', numClasses = 3): Promise<Model> =>
  createModel('tf_efficientnet_b0', { pretrained: true, numClasses, device, seed: 2 })

interface Run {
  result: FitResult
  losses: number[]
  warnings: WarningEvent[]
  weights: Float32Array
}

let data: ImageFolder
async function train(dataBackend: DataBackend, options: Partial<TrainerOptions>, resume?: 'auto'): Promise<Run> {
  const model = await open('cuda')
  const trainer = new Trainer({
    model,
    batchSize: 2,
    evalBatchSize: 3,
    imageSize: 32,
    maxSteps: 2,
    schedule: 'constant',
    warmupEpochs: 0,
    seed: 1,
    maxBad: 4,
    dataBackend,
    ...options,
  })
  const events = trainer.events()
  const result = await trainer.fit({ train: data.train, val: data.val!, ...(resume ? { resume } : {}) })
  const losses: number[] = []
  const warnings: WarningEvent[] = []
  for await (const event of events) {
    if (event.type === 'step') losses.push(event.loss)
    if (event.type === 'warning') warnings.push(event)
  }
  const weights = model.session.read('conv_head.weight')
  await model.close()
  return { result, losses, warnings, weights }
}

describeWith(LIBRARIES, 'images decoded on the GPU', () => {
  let gpu: Run
  beforeAll(async () => {
    const dir = await makeData(path.join(scratch, 'data'), { train: 3, val: 1, side: 40 })
    const jpeg = readFileSync(path.join(dir, 'train/green/002.jpg'))
    // One that nvJPEG does not take, one that nobody can read.
    writeFileSync(path.join(dir, 'val/blue/png.jpg'), await sharp(jpeg).png().toBuffer())
    writeFileSync(path.join(dir, 'val/red/cut.jpg'), jpeg.subarray(0, jpeg.length / 2))
    data = await imageFolder(dir)
    gpu = await train('gpu', { outDir: path.join(scratch, 'gpu') })
  }, 300_000)

  it('trains and validates as from the CPU', async () => {
    const cpu = await train('cpu', {})
    expect(gpu.losses).toHaveLength(2)
    expect(gpu.losses).toEqual(cpu.losses)
    expect(gpu.result.metrics['val/loss']).toBe(cpu.result.metrics['val/loss'])
    expect(gpu.weights).toEqual(cpu.weights)
    expect(gpu.result.badFiles).toEqual(cpu.result.badFiles)
    expect(gpu.result.badFiles).toMatchObject([{ code: 'EFF_DATA_DECODE', message: expect.stringMatching(/ends early/) }])
    expect(cpu.result).not.toHaveProperty('cpuDecodedFiles')
  }, 300_000)

  it('names and counts what the CPU decodes', () => {
    expect(gpu.result.cpuDecodedFiles).toBe(1)
    expect(gpu.warnings.filter(({ code }) => code === 'cpu-decoded')).toMatchObject([
      { message: expect.stringMatching(/png\.jpg: decoded on the CPU/) },
    ])
    expect(readFileSync(path.join(scratch, 'gpu/report.html'), 'utf8')).toContain(
      '1 file was decoded on the CPU: nvJPEG does not take it.',
    )
  })

  it('goes on in the middle of an epoch with the batches of the whole run', async () => {
    const outDir = path.join(scratch, 'resumed')
    const first = await train('gpu', { outDir, maxSteps: 1 })
    const second = await train('gpu', { outDir }, 'auto')
    expect([...first.losses, ...second.losses]).toEqual(gpu.losses)
    expect(second.weights).toEqual(gpu.weights)
  }, 300_000)

  it('evaluates as from the CPU, tail and all', async () => {
    const model = await open('cuda')
    const run = (dataBackend: DataBackend) =>
      evaluateModel(model, { data: data.val!, batchSize: 3, imageSize: 32, dataBackend, maxBad: 4 })
    const [there, here] = [await run('gpu'), await run('cpu')]
    expect(there.images).toBe(4)
    expect(there.metrics).toEqual(here.metrics)
    expect(there.cpuDecodedFiles).toBe(1)
    expect(here).not.toHaveProperty('cpuDecodedFiles')
    await model.close()
  }, 120_000)

  it('predicts beside an evaluation whose batches wait on the device', async () => {
    const model = await open('cuda')
    const photo = { data: new Uint8Array(32 * 32 * 3).fill(90), width: 32, height: 32 }
    const alone = await model.predict(photo, { imageSize: 32 })
    const run = evaluateModel(model, { data: data.val!, batchSize: 1, imageSize: 32, dataBackend: 'gpu', maxBad: 4 })
    const beside = await Promise.all([1, 2, 3].map(() => model.predict(photo, { imageSize: 32 })))
    for (const answer of beside) expect(answer).toEqual(alone)
    expect((await run).images).toBe(4)
    await model.close()
  }, 120_000)

  it('is refused for a model on the CPU, before anything is written', async () => {
    const model = await open('cpu')
    const outDir = path.join(scratch, 'refused')
    const refusal = {
      code: 'EFF_CONFIG_VALUE',
      message: expect.stringMatching(/on the CPU/),
      hint: expect.stringMatching(/'cpu'/),
    }
    expect(() => new Trainer({ model, outDir, dataBackend: 'gpu' })).toThrow(expect.objectContaining(refusal))
    expect(existsSync(outDir)).toBe(false)
    await expect(evaluateModel(model, { data: data.val!, dataBackend: 'gpu' })).rejects.toMatchObject(refusal)
    const wrong = { model, dataBackend: 'nvjpeg' as DataBackend }
    expect(() => new Trainer(wrong)).toThrow(expect.objectContaining({ code: 'EFF_CONFIG_VALUE' }))
    await expect(evaluateModel(model, { data: data.val!, dataBackend: wrong.dataBackend })).rejects.toMatchObject({
      code: 'EFF_CONFIG_VALUE',
    })
    await model.close()
  })
})
