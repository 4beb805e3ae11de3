/**
 * What plans take of a GPU's memory, by the log of a driver without one (native/cuda/fake): plans of a model share its arenas, a limit
 * holds, and what does not fit is said with the batch that does. And what is told where a GPU is opened.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, afterEach, expect, it, vi } from 'vitest'
import { ARENA, binding } from '../../ts/binding.js'
import { NativeImageLoader } from '../../ts/data/loader.js'
import { createModel, imageFolder, type Model } from '../../ts/index.js'
import { repeated } from '../../ts/runtime/repeat.js'
import { describeWith, FAKE_DRIVER } from '../helpers/stand_in.js'
import { makeData } from '../train/helpers/data.js'

const scratch = mkdtempSync(path.join(os.tmpdir(), 'effnet-cuda-memory-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))
const log = path.join(scratch, 'log')
// Read when the driver is used first.
process.env['EFFNET_LIB_DIR'] = FAKE_DRIVER.folder
process.env['FAKE_CUDA_LOG'] = log
process.env['FAKE_CUDA_DEVICES'] = '2'

const off = { labelSmoothing: 0.1, dropRate: 0, dropPathRate: 0, clip: true }
const training = { ...off, optimizer: { name: 'sgd' }, ema: true, imageSize: 32 } as const

/** Bytes of each allocation since `from`, in order. */
const allocations = (from = 0): number[] =>
  [...readFileSync(log, 'utf8').matchAll(/^ {2}(\d+) bytes$/gm)].map((match) => Number(match[1])).slice(from)

describeWith(FAKE_DRIVER, 'variables that say how a GPU works', () => {
  afterEach(() => vi.unstubAllEnvs())
  const create = () => createModel('efficientnet_b0', { numClasses: 5, device: 'cuda' })

  it.each([
    ['EFFNET_CUDA_SYNC', 'yes', '0 and 1', /waits after every kernel/],
    ['EFFNET_CUDA_PROVIDER', 'bad', 'own, cublaslt and cudnn', /own takes the package's own kernels/],
    ['EFFNET_CUDA_TUNE', 'no', '0, 1 and again', /by a table/],
  ])('%s=%s is refused where the GPU is opened', async (name, value, values, hint) => {
    vi.stubEnv(name, value)
    await expect(create()).rejects.toMatchObject({
      code: 'EFF_CONFIG_VALUE',
      message: `${name}=${value}: there are ${values}`,
      hint: expect.stringMatching(hint),
    })
    await (await createModel('efficientnet_b0', { numClasses: 5 })).close()
  })

  it.each(['', '0', '1'])('EFFNET_CUDA_SYNC="%s" is taken', async (value) => {
    vi.stubEnv('EFFNET_CUDA_SYNC', value)
    await (await create()).close()
  })
})

describeWith(FAKE_DRIVER, 'memory of a GPU', () => {
  const models: Model[] = []
  const open = async (memoryLimit?: number | string, precision: 'fp32' | 'bf16-mixed' = 'fp32'): Promise<Model> => {
    const limit = memoryLimit && { memoryLimit }
    const model = await createModel('efficientnet_b0', { numClasses: 5, device: 'cuda', precision, ...limit })
    models.push(model)
    return model
  }
  afterEach(async () => {
    for (const model of models.splice(0)) await model.close()
    delete process.env['FAKE_CUDA_MEMORY']
  })

  it('is that of the GPU that was asked for', async () => {
    const devices = (): string[] => [...readFileSync(log, 'utf8').matchAll(/^ {2}device (\d+)$/gm)].map((match) => match[1]!)
    await open()
    expect(devices()).toEqual(['0'])
    const model = await createModel('efficientnet_b0', { numClasses: 5, device: 'cuda:1' })
    models.push(model)
    expect(model.device).toBe('cuda:1')
    expect(devices()).toEqual(['0', '1'])
  }, 120_000)

  it('is shared by training, its last batch, evaluation and single images: one arena of activations, the largest', async () => {
    const first = allocations().length
    const { session } = await open()
    const train = await session.trainPlan({ ...training, batchSize: 8 })
    const used = (): number => binding().memoryBudget(session.memory).used
    const before = used()
    const count = allocations().length
    const others = [
      await session.trainPlan({ ...training, batchSize: 3 }),
      await session.evalPlan({ batchSize: 8, imageSize: 32 }),
      await session.evalPlan({ batchSize: 1, imageSize: 32 }),
    ]
    const activations = train.arenaBytes[ARENA.activations]!
    const own = allocations(count)
    for (const plan of others) {
      expect(plan.arenaBytes[ARENA.activations]).toBeLessThan(activations)
      expect(own).not.toContain(plan.arenaBytes[ARENA.activations])
      expect(own).not.toContain(plan.arenaBytes[ARENA.weights])
    }
    // All of the growth is theirs: folded weights, inputs, outputs, scratch.
    expect(used() - before).toBe(own.reduce((sum, bytes) => sum + bytes, 0))
    const all = allocations(first)
    expect(all.filter((bytes) => bytes === activations)).toHaveLength(1)
    // Weights, gradients, one moment, the average.
    expect(all.filter((bytes) => bytes === train.arenaBytes[ARENA.weights])).toHaveLength(4)
    // What has an address is the binding's; a step allocates nothing.
    const input = train.packInput(new Uint8Array(8 * 32 * 32 * 3))
    await session.resetEma()
    const stepped = allocations().length
    await train.step(input, { lr: 0.01 })
    await train.step(input, { lr: 0.01 })
    expect(allocations(stepped)).toEqual([])
  }, 120_000)

  it('has what the host wrote there, in the 16-bit copy that a plan in training reads too', async () => {
    const losses = async (written: 'before' | 'between' | 'never'): Promise<number[]> => {
      const model = await createModel('efficientnet_b0', { numClasses: 5, device: 'cuda', precision: 'bf16-mixed', seed: 1 })
      models.push(model)
      const { session } = model
      const plan = await session.trainPlan({ ...training, ema: false, batchSize: 2 })
      const write = (): void => session.write('conv_head.weight', session.read('conv_head.weight').fill(0))
      // It begins as zeros, with which nothing tells the classes apart.
      session.write(
        'classifier.weight',
        session.read('classifier.weight').map((_, i) => Math.sin(i)),
      )
      const images = new Uint8Array(2 * 32 * 32 * 3).map((_, i) => Math.imul(i, 2654435761) >>> 24)
      const input = plan.packInput(images, [1, 3])
      const loss = async (): Promise<number> => (await plan.step(input, { lr: 0, clip_norm: 1 })).loss
      if (written === 'before') write()
      const first = await loss()
      if (written === 'between') write()
      return [first, await loss()]
    }
    const [before, between, never] = [await losses('before'), await losses('between'), await losses('never')]
    expect(between).toEqual([never[0], before[1]])
    expect(before[1]).not.toBe(never[1])
  }, 120_000)

  it('is read by copies where batches lie, and where an input that is used again does', async () => {
    const model = await open()
    const { session } = model
    const calls = (): number => readFileSync(log, 'utf8').match(/^cuMemHostAlloc$/gm)?.length ?? 0
    const plan = await session.evalPlan({ batchSize: 2, imageSize: 32 })
    const images = Uint8Array.from({ length: 2 * 32 * 32 * 3 }, (_, i) => i * 7)
    const any = await plan.run(plan.packInput(images))
    const before = calls()
    const packed = session.inputMemory(plan.inputLayout.bytes)
    expect(calls()).toBe(before + 1)
    const input = plan.packInput(images, undefined, packed)
    const again = repeated(plan, input, () => plan.run(input))
    for (let i = 0; i < 3; i++) expect((await again()).logits).toEqual(any.logits)
    // The second slot came with the input ahead: its scalars and its output, no input of its own.
    expect(calls()).toBe(before + 3)
    const data = await imageFolder(await makeData(path.join(scratch, 'photos'), { train: 2, val: 1 }), { split: 'train' })
    const transform = { mode: 'eval', size: 32 } as const
    const loader = new NativeImageLoader(data, { batchSize: 2, transform, ...session.loaderDevice('cpu') })
    for await (const batch of loader.epoch()) await plan.run({ batch: batch.handle })
    loader.close()
    expect(calls()).toBeGreaterThan(before + 3)
  }, 120_000)

  it('has one 16-bit copy of the weights, and one of the average once that is evaluated', async () => {
    const first = allocations().length
    const model = await createModel('efficientnet_b0', { numClasses: 5, device: 'cuda', precision: 'bf16-mixed' })
    models.push(model)
    const { session } = model
    const train = await session.trainPlan({ ...training, batchSize: 2 })
    const tail = await session.trainPlan({ ...training, batchSize: 1 })
    const evaluation = await session.evalPlan({ batchSize: 1, imageSize: 32 })
    await session.resetEma()
    const copies = (): number => {
      const half = train.arenaBytes[ARENA.weights]! / 2
      return allocations(first).filter((bytes) => bytes === half).length
    }
    const images = new Uint8Array(2 * 32 * 32 * 3).map((_, i) => i * 7)
    const logits = async (): Promise<Float32Array> =>
      (await evaluation.run(evaluation.packInput(images.subarray(0, 32 * 32 * 3)))).logits
    for (const plan of [tail, train]) {
      await plan.step(plan.packInput(images.subarray(0, plan.batchSize * 32 * 32 * 3)), { lr: 0.01, ema_decay: 0.5 })
    }
    const ofWeights = await logits()
    expect(copies()).toBe(1)
    await session.useEma(true)
    expect(await logits()).not.toEqual(ofWeights)
    await session.useEma(false)
    expect(await logits()).toEqual(ofWeights)
    expect(copies()).toBe(2)
  }, 120_000)

  const refusal = async (model: Model, batchSize: number) => {
    const error = await model.session.trainPlan({ ...training, batchSize }).then(
      () => undefined,
      (e: unknown) => e as { code: string; message: string; hint: string; details: { batchSizeThatFits: number } },
    )
    expect(error).toMatchObject({ code: 'EFF_OOM' })
    return error!
  }

  it('says what is needed, free, largest, and which batch fits; that one does', async () => {
    process.env['FAKE_CUDA_MEMORY'] = '200000000'
    const model = await open()
    const { message, hint, details } = await refusal(model, 512)
    expect(message).toMatch(
      /^efficientnet_b0 train 512x32 needs [\d.]+ MiB of memory; [\d.]+ MiB are available; the largest tensors: \S+ f32\[512,/,
    )
    expect(hint).toBe(`--batch-size ${details.batchSizeThatFits}`)
    expect(details.batchSizeThatFits).toBeGreaterThan(4)
    await model.session.trainPlan({ ...training, batchSize: details.batchSizeThatFits })
  }, 120_000)

  it.each(['fp32', 'bf16-mixed'] as const)(
    'names the same batch whatever was asked for: it fits, and 1.3 times as many do not (%s)',
    async (precision) => {
      const limited = () => open('400MB', precision)
      const fits: number[] = []
      for (const batchSize of [1000, 2000, 7000, 65536]) {
        fits.push((await refusal(await limited(), batchSize)).details.batchSizeThatFits)
      }
      const least = Math.min(...fits)
      expect(least).toBeGreaterThan(100)
      expect(Math.max(...fits) - least).toBeLessThanOrEqual(0.02 * least)
      await (await limited()).session.trainPlan({ ...training, batchSize: Math.max(...fits) })
      const { details } = await refusal(await limited(), Math.ceil(1.3 * least))
      expect(Math.abs(details.batchSizeThatFits - least)).toBeLessThanOrEqual(0.02 * least)
    },
    120_000,
  )

  it('keeps to the limit of the model, which the message names', async () => {
    const model = await open('20%')
    const { message, details } = await refusal(model, 512)
    expect(message).toMatch(/MiB are left of the limit of 190\.7 MiB; the largest/)
    await model.session.trainPlan({ ...training, batchSize: details.batchSizeThatFits })
    expect(binding().memoryBudget(model.session.memory)).toMatchObject({ limit: 2e8 })
    // Another model has a limit of its own.
    await (await open()).session.trainPlan({ ...training, batchSize: details.batchSizeThatFits + 8 })
  }, 120_000)

  it('goes on where the host has none to lock, and says so once', async () => {
    const told: string[][] = []
    const results = []
    const data = await imageFolder(await makeData(path.join(scratch, 'unlocked'), { train: 2, val: 1 }), { split: 'train' })
    for (const lockable of ['1000000000', '0']) {
      process.env['FAKE_CUDA_LOCKABLE'] = lockable
      const { session } = await open()
      session.listen({ onWarning: (...warning) => told.push(warning.map(String)) })
      const plan = await session.evalPlan({ batchSize: 2, imageSize: 32 })
      const transform = { mode: 'eval', size: 32 } as const
      const loader = new NativeImageLoader(data, { batchSize: 2, transform, ...session.loaderDevice('cpu') })
      const logits = []
      for await (const batch of loader.epoch()) logits.push((await plan.run({ batch: batch.handle })).logits)
      loader.close()
      results.push(logits)
      expect(session.unlockedBytes > 0).toBe(lockable === '0')
    }
    delete process.env['FAKE_CUDA_LOCKABLE']
    expect(results[1]).toEqual(results[0])
    expect(told).toEqual([
      [
        'host-memory',
        expect.stringMatching(/no page-locked memory left.*ordinary memory.*more slowly; results are the same$/),
        expect.any(String),
      ],
    ])
    expect(told[0]![2]).toMatch(/^free memory of the host, .*memory\.max of its cgroup.*`ulimit -l`$/)
  }, 120_000)

  it('has no batch to name where a limit is below the weights', async () => {
    await expect(open('5MB')).rejects.toMatchObject({
      code: 'EFF_OOM',
      message: expect.stringMatching(/^efficientnet_b0: its weights alone take 15\.\d MiB; the limit is 4\.8 MiB$/),
      hint: 'a larger memoryLimit, or a smaller model: no batch fits beside these weights',
    })
  })

  it('has a mend of its own where the weights find no room', async () => {
    // Of the 1 GB that this GPU had when it was opened: others have the rest.
    process.env['FAKE_CUDA_MEMORY'] = '5000000'
    await expect(open()).rejects.toMatchObject({
      code: 'EFF_OOM',
      hint: expect.stringMatching(/^end what else holds the GPU's memory .*: it is the weights, whatever the batch$/),
    })
    process.env['FAKE_CUDA_MEMORY'] = '200'
    // Of the little that a model has beside them.
    await expect(open()).rejects.toMatchObject({ code: 'EFF_OOM', message: expect.not.stringMatching(/\b0\.0 /) })
  })

  it('tells what was found too small only while it was taken', async () => {
    const model = await open()
    process.env['FAKE_CUDA_FAIL'] = `cuMemAlloc:${allocations().length + 3}:2`
    const { message, hint } = await refusal(model, 16).finally(() => delete process.env['FAKE_CUDA_FAIL'])
    expect(message).toMatch(/; [\d.]+ MiB of GPU memory could not be allocated; .*; the largest tensors: /)
    expect(hint).toBe('--batch-size 14')
    await model.session.trainPlan({ ...training, batchSize: 14 })
  }, 120_000)
})
