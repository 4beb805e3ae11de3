/**
 * The CUDA backend behind the public API, on a driver without a GPU (native/cuda/fake): its kernels run in emulation. Beside the CPU
 * backend, which is another code for the same plans.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import sharp from 'sharp'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { ARENA, binding, type StepInput } from '../../ts/binding.js'
import {
  type Callback,
  createModel,
  evaluateModel,
  imageFolder,
  loadModel,
  type Model,
  type StepEvent,
  Trainer,
  type TrainerOptions,
} from '../../ts/index.js'
import { packageRoot } from '../../ts/paths.js'
import { packScalars } from '../../ts/runtime/scalars.js'
import { describeWith, FAKE_DRIVER } from '../helpers/stand_in.js'
import { relativeError } from './harness.js'

// Read when the backend is used first.
process.env['EFFNET_LIB_DIR'] = FAKE_DRIVER.folder

const SIZE = 32
const BATCH = 8
const images = Uint8Array.from({ length: BATCH * SIZE * SIZE * 3 }, (_, i) => (i * 7919 + ((i * i) % 97)) % 251)
const labels = Array.from({ length: BATCH }, (_, i) => i % 5)
const optimizer = { name: 'sgd' } as const
const options = {
  batchSize: BATCH,
  imageSize: SIZE,
  optimizer,
  labelSmoothing: 0.1,
  dropRate: 0.2,
  dropPathRate: 0.2,
  ema: true,
  clip: true,
}
const scalars = { lr: 0.01, momentum: 0.9, weight_decay: 1e-5, clip_norm: 1, ema_decay: 0.9, seed: 5, step: 0, optimizer_step: 1 }
const data = process.env['EFFNET_TEST_DATA']
const scratch = mkdtempSync(path.join(os.tmpdir(), 'effnet-cuda-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

const open = (device: 'cpu' | 'cuda'): Promise<Model> =>
  createModel('tf_efficientnet_b0', { pretrained: true, numClasses: 5, device, seed: 2 })

async function oneStep(device: 'cpu' | 'cuda') {
  const model = await open(device)
  const { session } = model
  const train = await session.trainPlan(options)
  await session.resetEma()
  const { loss, gradNorm } = await train.step(train.packInput(images, labels), scalars)
  const evaluation = await session.evalPlan({ batchSize: BATCH, imageSize: SIZE })
  const trained = await evaluation.run(evaluation.packInput(images, labels))
  await session.useEma(true)
  const averaged = await evaluation.run(evaluation.packInput(images, labels))
  await session.useEma(false)
  const again = await evaluation.run(evaluation.packInput(images, labels))
  const stem = session.read('conv_stem.weight')
  const momentum = session.read('conv_stem.weight', ARENA.moment0)
  const kernels = train.dump().map((row) => row.kernel)
  await model.close()
  return { loss, gradNorm: gradNorm!, trained, averaged, again, stem, momentum, kernels }
}

/** Largest difference as a share of the largest value. */
function apart(a: Float32Array, b: Float32Array): number {
  const scale = b.reduce((most, x) => Math.max(most, Math.abs(x)), 0)
  return a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i]!)), 0) / scale
}

describeWith(FAKE_DRIVER, 'device "cuda"', () => {
  let cuda: Awaited<ReturnType<typeof oneStep>>
  let cpu: Awaited<ReturnType<typeof oneStep>>
  beforeAll(async () => {
    cpu = await oneStep('cpu')
    cuda = await oneStep('cuda')
  }, 300_000)

  it('runs every op by a kernel of its own', () => {
    expect(cuda.kernels.length).toBeGreaterThan(150) // of B0
    expect(cuda.kernels.filter((name) => !name.endsWith(':cuda'))).toEqual([])
  })

  it('makes the step that the CPU makes', () => {
    expect(cuda.loss).toBeCloseTo(cpu.loss, 4)
    expect(cuda.gradNorm / cpu.gradNorm).toBeCloseTo(1, 3)
    expect(apart(cuda.stem, cpu.stem)).toBeLessThan(1e-4)
    expect(apart(cuda.momentum, cpu.momentum)).toBeLessThan(1e-2)
  })

  it('evaluates the trained weights, their average, and the weights again', () => {
    for (const part of ['trained', 'averaged', 'again'] as const) {
      expect(apart(cuda[part].logits, cpu[part].logits)).toBeLessThan(1e-2)
      expect(cuda[part].loss).toBeCloseTo(cpu[part].loss, 2)
    }
    expect(cuda.again.logits).toEqual(cuda.trained.logits)
    expect(cuda.averaged.logits).not.toEqual(cuda.trained.logits)
  })

  // So large a weight leaves the loss a number, but not its gradient.
  it.each(['fp32', 'bf16-mixed'] as const)(
    'leaves weights, moments, average and statistics alone where a gradient is not finite, without clipping: %s',
    async (precision) => {
      const model = await createModel('tf_efficientnet_b0', {
        pretrained: true,
        numClasses: 5,
        device: 'cuda',
        precision,
        seed: 2,
      })
      const { session } = model
      const plan = await session.trainPlan({ ...options, clip: false })
      await session.resetEma()
      const steep = session.read('classifier.weight').fill(0)
      steep[0] = 1e37
      session.write('classifier.weight', steep)
      const state = () =>
        ['classifier.weight', 'conv_stem.weight', 'bn1.running_var'].flatMap((name) =>
          [ARENA.weights, ARENA.moment0, ARENA.ema].map((arena) => session.read(name, arena)),
        )
      const before = state()
      const { loss, gradNorm } = await plan.step(plan.packInput(images, labels), scalars)
      expect(loss).toBeLessThan(Number.POSITIVE_INFINITY)
      expect(gradNorm).not.toBeLessThan(Number.POSITIVE_INFINITY)
      expect(state()).toEqual(before)
      await model.close()
    },
    120_000,
  )

  it('steps on the input that it took ahead, and on the one given where another took its place', async () => {
    const model = await open('cuda')
    const plan = await model.session.evalPlan({ batchSize: BATCH, imageSize: SIZE })
    const { handle } = plan['compiled']
    const input = plan.packInput(images, labels)
    const other = plan.packInput(images.toReversed(), labels)
    const step = async (given: StepInput) => Buffer.from(await binding().step(handle, given, packScalars({})))
    const want = await step(input)
    // Where the ticket is good the bytes beside it are not read.
    const taken = await binding().prefetch(handle, input)
    expect(await step({ ...other, ticket: taken })).toEqual(want)
    const replaced = await binding().prefetch(handle, input)
    expect(replaced).toBeGreaterThan(taken)
    expect(await step(other)).not.toEqual(want)
    expect(await step({ ...input, ticket: replaced })).toEqual(want)
    await model.close()
  }, 120_000)

  it('names itself, and refuses a GPU that is not there', async () => {
    expect(await binding().cudaInfo()).toMatchObject({
      unavailable: null,
      driverVersion: 13000,
      driverRelease: '580.65.06',
      gpus: [{ name: 'Fake H200', computeCapability: 9 }],
    })
    await expect(createModel('efficientnet_b0', { device: 'cuda:3' })).rejects.toMatchObject({
      code: 'EFF_BACKEND_MISSING',
      message: expect.stringMatching(/"cuda:3".*no GPU 3.*sees 1/),
      hint: "device 'cuda:0'",
    })
  })

  it('refuses to decode images without nvJPEG, and says how to get it', async () => {
    const { val } = await imageFolder(path.join(packageRoot(), 'models/demo'))
    const outDir = path.join(scratch, 'no-nvjpeg')
    const refusal = {
      code: 'EFF_BACKEND_MISSING',
      message: expect.stringMatching(/nvJPEG.*libnvjpeg\.so\.13/),
      hint: expect.stringMatching(/nvidia-nvjpeg.*dataBackend: 'cpu'/),
    }
    const model = await createModel('tf_efficientnet_b0', { pretrained: true, numClasses: 10, device: 'cuda' })
    await expect(evaluateModel(model, { data: val!, dataBackend: 'gpu' })).rejects.toMatchObject(refusal)
    const run = new Trainer({ model, outDir, dataBackend: 'gpu' })
    await expect(run.fit({ train: val! })).rejects.toMatchObject(refusal)
    expect(existsSync(outDir)).toBe(false)
    await model.close()
  })

  it('says what a plan needs before it allocates', async () => {
    const model = await open('cuda')
    await expect(model.session.trainPlan({ ...options, batchSize: 4096, imageSize: 224 })).rejects.toMatchObject({
      code: 'EFF_OOM',
      hint: expect.stringMatching(/^--batch-size \d+$/),
    })
    await model.close()
  })

  it('trains, saves, and is continued on the CPU from what it saved', async () => {
    const { train: all } = await imageFolder(path.join(packageRoot(), 'models/demo'))
    const [, train] = all.split(8 / all.length, 1)
    const outDir = path.join(scratch, 'run')
    const fit = async (device: 'cpu' | 'cuda', maxSteps: number) => {
      const model = await createModel('tf_efficientnet_b0', { pretrained: true, numClasses: all.classes.length, device })
      const trainer = new Trainer({ model, outDir, batchSize: 4, imageSize: SIZE, maxSteps, maxEpochs: 9, seed: 1 })
      const result = await trainer.fit({ train, resume: 'auto' })
      const weights = model.session.read('conv_head.weight')
      expect(model.device).toBe(device === 'cpu' ? 'cpu' : 'cuda:0')
      await model.close()
      return { result, weights }
    }
    const first = await fit('cuda', 1)
    expect(first.result).toMatchObject({ status: 'finished', step: 1 })
    const loaded = await loadModel(path.join(outDir, 'checkpoints/last'))
    expect(loaded.session.read('conv_head.weight')).toEqual(first.weights)
    await loaded.close()
    const second = await fit('cpu', 2)
    expect(second.result).toMatchObject({ status: 'finished', step: 2 })
    expect(second.weights).not.toEqual(first.weights)
  }, 300_000)

  it('scales the loss of fp16-mixed, skips what overflows, and goes on from a checkpoint with the scale it had', async () => {
    const { train: all } = await imageFolder(path.join(packageRoot(), 'models/demo'))
    const [, train] = all.split(8 / all.length, 1)
    const outDir = path.join(scratch, 'fp16')
    const scaled: Pick<TrainerOptions, 'lossScale'> = { lossScale: { initial: 2 ** 99, backoff: 2 ** -87, interval: 2 } }
    const fit = async (maxSteps: number) => {
      const numClasses = all.classes.length
      const model = await createModel('tf_efficientnet_b0', {
        pretrained: true,
        numClasses,
        device: 'cuda',
        precision: 'fp16-mixed',
      })
      const before = model.session.read('conv_head.weight')
      const mean = model.session.read('bn1.running_mean')
      const steps: StepEvent[] = []
      const warned: string[] = []
      const noted = {
        name: 'noted',
        onStepEnd: (_: unknown, event: StepEvent) => void steps.push(event),
        onWarning: (_: unknown, { code }: { code: string }) => void warned.push(code),
      }
      const run = { outDir, batchSize: 4, imageSize: SIZE, maxSteps, maxEpochs: 9, seed: 1, callbacks: [noted] }
      await new Trainer({ model, ...run, ...scaled }).fit({ train, resume: 'auto' })
      const moved = [
        apart(model.session.read('conv_head.weight'), before) > 0,
        apart(model.session.read('bn1.running_mean'), mean) > 0,
      ]
      await model.close()
      return { moved, warned, steps: steps.map(({ lossScale, skippedSteps }) => [lossScale, skippedSteps]) }
    }
    expect(await fit(1)).toEqual({ moved: [false, false], warned: ['updates-skipped'], steps: [[2 ** 12, 1]] })
    const state = JSON.parse(readFileSync(path.join(outDir, 'checkpoints/last/state.json'), 'utf8'))
    expect(state.lossScale).toEqual({ scale: 2 ** 12, growth: 0, skipped: 1 })
    expect(await fit(3)).toEqual({
      moved: [true, true],
      warned: ['resume-option'], // maxSteps
      steps: [
        [2 ** 12, 1],
        [2 ** 13, 1],
      ],
    })
    const header = readFileSync(path.join(outDir, 'metrics.csv'), 'utf8').split('\n')[0]
    expect(header).toContain('loss_scale,skipped_steps')
  }, 300_000)

  it('goes on after an update of several batches that overflowed with the least scale to come', async () => {
    const { train: all } = await imageFolder(path.join(packageRoot(), 'models/demo'))
    const [, train] = all.split(8 / all.length, 1)
    const model = await createModel('tf_efficientnet_b0', {
      numClasses: all.classes.length,
      device: 'cuda',
      precision: 'fp16-mixed',
    })
    const steps: StepEvent[] = []
    const noted = { name: 'noted', onStepEnd: (_: unknown, event: StepEvent) => void steps.push(event) }
    const run = { batchSize: 4, accumulate: 2, imageSize: SIZE, maxSteps: 2, maxEpochs: 2, seed: 1, callbacks: [noted] }
    const trainer = new Trainer({ model, ...run, lossScale: { initial: 2 ** 99, backoff: 2 ** -99 } })
    await trainer.fit({ train })
    await model.close()
    expect(steps.map(({ lossScale, skippedSteps }) => [lossScale, skippedSteps])).toEqual([
      [1, 1],
      [1, 1],
    ])
  }, 300_000)

  it.skipIf(!data)(
    'gives the logits that timm gave for real photos at 224 px (EFFNET_TEST_DATA)',
    async () => {
      const { images: photos } = JSON.parse(readFileSync(path.join(data!, 'reference/b0-imagenet.json'), 'utf8')) as {
        images: { file: string; input_png: string; logits: number[]; top5: number[] }[]
      }
      const pretrained = path.join(data!, 'weights/tf_efficientnet_b0.tfhub-v1.safetensors')
      for (const [precision, count, tolerance] of [
        ['fp32', 3, 1e-5],
        ['tf32', 1, 5e-3],
        ['fp16-mixed', 1, 5e-3],
        ['bf16-mixed', 1, 2.5e-2],
      ] as const) {
        const model = await createModel('tf_efficientnet_b0', { pretrained, device: 'cuda', precision })
        const plan = await model.session.evalPlan({ batchSize: 1, imageSize: 224 })
        for (const photo of photos.slice(0, count)) {
          const input = await sharp(path.join(data!, 'reference', photo.input_png))
            .removeAlpha()
            .toColourspace('srgb')
            .raw()
            .toBuffer()
          const { logits } = await plan.run(plan.packInput(new Uint8Array(input)))
          expect(relativeError(logits, photo.logits), `${photo.file} ${precision}`).toBeLessThan(tolerance)
          if (precision !== 'fp32') continue
          const best = [...logits.keys()].sort((a, b) => logits[b]! - logits[a]!).slice(0, 5)
          expect(best, photo.file).toEqual(photo.top5)
        }
        await model.close()
      }
    },
    300_000,
  )

  it('ends a run at the step in work when its signal says so, with a checkpoint', async () => {
    const { train: all } = await imageFolder(path.join(packageRoot(), 'models/demo'))
    const [, train] = all.split(8 / all.length, 1)
    const outDir = path.join(scratch, 'stopped')
    const model = await createModel('tf_efficientnet_b0', { pretrained: true, numClasses: all.classes.length, device: 'cuda' })
    const abort = new AbortController()
    const steps: number[] = []
    const stops: Callback = {
      name: 'stops',
      // The second step is queued when it says so.
      onStepStart: ({ step }) => void (step === 1 && setTimeout(() => abort.abort(), 1)),
      onStepEnd: ({ step }) => void steps.push(step),
    }
    const run = { outDir, batchSize: 2, imageSize: SIZE, maxSteps: 9, maxEpochs: 9, seed: 1, callbacks: [stops] }
    const fit = new Trainer({ model, ...run, signal: abort.signal }).fit({ train })
    await expect(fit).rejects.toMatchObject({ code: 'EFF_ABORTED' })
    expect(steps).toEqual([1, 2])
    await model.close()
    expect(JSON.parse(readFileSync(path.join(outDir, 'checkpoints/last/state.json'), 'utf8'))).toMatchObject({ step: 2 })
  }, 300_000)

  it('gives back every native byte', async () => {
    const before = binding().memoryUsage()
    const model = await open('cuda')
    await model.session.evalPlan({ batchSize: 1, imageSize: SIZE })
    await model.close()
    expect({ ...binding().memoryUsage(), handles: 0 }).toEqual({ ...before, handles: 0 })
  })
})
