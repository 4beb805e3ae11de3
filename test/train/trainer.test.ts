import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { binding } from '../../ts/binding.js'
import {
  type Callback,
  createModel,
  EarlyStopping,
  evaluateModel,
  type FitResult,
  type ImageFolder,
  imageFolder,
  loadModel,
  type Model,
  Trainer,
  type TrainerEvent,
  type TrainerOptions,
} from '../../ts/index.js'
import { makeData } from './helpers/data.js'

const root = mkdtempSync(path.join(os.tmpdir(), 'effnet-train-'))
let data: ImageFolder
let made = 0
const fresh = () => path.join(root, `run${made++}`)

beforeAll(async () => {
  data = await imageFolder(await makeData(path.join(root, 'data'), { train: 8, val: 3 }))
})
afterAll(() => rmSync(root, { recursive: true, force: true }))

const SMALL = { imageSize: 32, batchSize: 8, maxEpochs: 2, lr: 2e-3, recipe: 'finetune', logEvery: 1, workers: 2 } as const
const make = (threads = 2) => createModel('tf_efficientnet_b0', { pretrained: true, numClasses: 3, seed: 1, threads })
/** Nothing of it is in `make()`: what a run continues from must come from its checkpoint. */
const other = () => createModel('tf_efficientnet_b0', { numClasses: 3, seed: 77, threads: 2 })
const code = (c: string) => expect.objectContaining({ code: c })
const bytes = (dir: string, file = 'model.safetensors') => readFileSync(path.join(dir, file))

/** A run of its own model. */
async function train(options: Partial<TrainerOptions>, fit: Parameters<Trainer['fit']>[0] = data): Promise<FitResult> {
  await using model = await make()
  await using trainer = new Trainer({ ...SMALL, model, ...options })
  return await trainer.fit(fit)
}

async function collect(trainer: Trainer): Promise<TrainerEvent[]> {
  const events: TrainerEvent[] = []
  for await (const e of trainer.events()) events.push(e)
  return events
}

describe('fit', () => {
  it('trains, validates, and leaves a run folder from which the model comes back', async () => {
    const outDir = fresh()
    await using model = await make()
    const trainer = new Trainer({ ...SMALL, model, outDir, maxEpochs: 3, command: ['effnet', 'train'] })
    const events = collect(trainer)
    const result = await trainer.fit(data)

    expect(result).toMatchObject({ status: 'finished', reason: 'epochs', epoch: 3, step: 9, badFiles: [] })
    const seen = await events
    expect(seen[0]).toMatchObject({ type: 'start', stepsPerEpoch: 3, totalSteps: 9, trainImages: 24, valImages: 9 })
    expect(seen.filter((e) => e.type === 'step').length).toBe(9)
    const losses = seen.filter((e) => e.type === 'epoch').map((e) => e.metrics['train/loss']!)
    expect(losses.length).toBe(3)
    expect(losses[2]).toBeLessThan(0.9 * losses[0]!)
    expect(seen.filter((e) => e.type === 'checkpoint').length).toBeGreaterThanOrEqual(1)
    expect(seen.at(-1)).toMatchObject({ type: 'end', result: { status: 'finished' } })

    const files = [
      'config.yaml',
      'environment.json',
      'metrics.csv',
      'report.html',
      'resolved.yaml',
      'results.json',
      'status.json',
      'steps.jsonl',
    ]
    expect(readdirSync(outDir)).toEqual(expect.arrayContaining(files))
    expect(readdirSync(path.join(outDir, 'checkpoints')).sort()).toEqual(['best', 'last', 'last.prev'])
    const last = readFileSync(path.join(outDir, 'metrics.csv'), 'utf8').trim().split('\n').at(-1)!.split(',')
    expect(Number(last[5])).toBe(result.metrics['val/loss'])
    expect(JSON.parse(readFileSync(path.join(outDir, 'status.json'), 'utf8'))).toMatchObject({ state: 'finished', step: 9 })
    const report = readFileSync(path.join(outDir, 'report.html'), 'utf8')
    expect(report).toContain('<svg')
    expect(report).not.toMatch(/(src|href)="?https?:/)

    await using again = await loadModel(result.checkpoint!)
    expect(again.classes).toEqual(['blue', 'green', 'red'])
    const evaluated = await evaluateModel(again, { data: data.val!, batchSize: 8 })
    expect(evaluated.metrics).toEqual({
      'val/top1': result.metrics['val/top1'],
      'val/top5': result.metrics['val/top5'],
      'val/loss': result.metrics['val/loss'],
    })
    expect(evaluated.details!.perClass.map((c) => c.count)).toEqual([3, 3, 3])
  })

  it('tells of the memory that this run lacked, not of what was missing before', async () => {
    let missing = 7
    const told = vi.spyOn(binding(), 'unlockedBytes').mockImplementation(() => missing)
    try {
      await using model = await make()
      missing = 20
      const fit = (callbacks: Callback[] = []) => new Trainer({ ...SMALL, maxEpochs: 1, model, callbacks }).fit(data)
      const lacks: Callback = {
        name: 'lacks',
        onEpochStart: () => {
          missing += 100
        },
      }
      expect(await fit([lacks])).toMatchObject({ unlockedBytes: 100 })
      expect(await fit()).not.toHaveProperty('unlockedBytes')
    } finally {
      told.mockRestore()
    }
  })

  it('gives the same bytes for the same seed, whatever the threads and workers', async () => {
    const [a, b, c] = [fresh(), fresh(), fresh()]
    await train({ outDir: a })
    await train({ outDir: b, workers: 1, prefetch: 1 })
    await using model = await make(1)
    await new Trainer({ ...SMALL, model, outDir: c }).fit(data)
    const of = (dir: string) => bytes(path.join(dir, 'checkpoints/last'))
    expect(of(b).equals(of(a))).toBe(true)
    expect(of(c).equals(of(a))).toBe(true)
  })

  it('without outDir writes nothing', async () => {
    const before = readdirSync(process.cwd())
    const result = await train({ maxEpochs: 1 })
    expect(result.checkpoint).toBeUndefined()
    expect(result.metrics['val/top1']).toBeTypeOf('number')
    expect(readdirSync(process.cwd())).toEqual(before)
  })

  it('stops after maxSteps within an epoch, with figures of those weights', async () => {
    const outDir = fresh()
    const result = await train({ maxSteps: 4, outDir })
    expect(result).toMatchObject({ status: 'finished', reason: 'steps', step: 4, epoch: 1 })
    await using model = await loadModel(result.checkpoint!)
    const { metrics } = await evaluateModel(model, { data: data.val!, batchSize: 8 })
    expect(metrics['val/loss']).toBe(result.metrics['val/loss'])
  })

  it('warns of a warm-up that does not end', async () => {
    const warned = async (options: Partial<TrainerOptions>): Promise<string[]> => {
      await using model = await make()
      const trainer = new Trainer({ ...SMALL, model, maxEpochs: 1, ...options })
      const events = collect(trainer)
      await trainer.fit(data)
      return (await events).filter((e) => e.type === 'warning').map((e) => `${e.code}: ${e.message}; ${e.hint}`)
    }
    expect(await warned({ warmupEpochs: 1e9 })).toEqual([
      'warmup: the warm-up of 1000000000 epochs does not end within the run: the learning rate rises to 2.00e-12, not to 0.002; warmupEpochs: 0.5 is half of the run',
    ])
    expect(await warned({ schedule: { name: 'cosine', warmupEpochs: 0.5 }, maxSteps: 1 })).toEqual([])
    expect(await warned({ maxSteps: 1 })).toEqual([])
  })

  it('makes the batch smaller than a small dataset, and says so', async () => {
    await using model = await make()
    const trainer = new Trainer({ ...SMALL, model, batchSize: 64, maxEpochs: 1 })
    const events = collect(trainer)
    const result = await trainer.fit(data)
    expect(result.step).toBe(1)
    expect(result.imagesPerS).toBeGreaterThan(0)
    expect(await events).toContainEqual(expect.objectContaining({ type: 'warning', code: 'batch-size' }))
  })

  it('keeps a moving average beside the weights', async () => {
    const outDir = fresh()
    const result = await train({ ema: 0.9, outDir, maxEpochs: 1 })
    expect(result.metrics).toHaveProperty('val_ema/top1')
    const last = path.join(outDir, 'checkpoints/last')
    expect(bytes(last, 'ema.safetensors').equals(bytes(last))).toBe(false)
    await using raw = await loadModel(last)
    const { metrics: ofRaw } = await evaluateModel(raw, { data: data.val!, batchSize: 8 })
    expect(ofRaw['val/loss']).toBe(result.metrics['val/loss'])
    await using model = await loadModel(last, { ema: true })
    const { metrics } = await evaluateModel(model, { data: data.val!, batchSize: 8 })
    expect(metrics['val/loss']).toBe(result.metrics['val_ema/loss'])
  })

  it('trains the classifier alone on a frozen backbone, whose statistics stay', async () => {
    await using model = await make()
    const names = ['conv_stem.weight', 'bn1.running_mean', 'blocks.3.0.bn2.running_var', 'classifier.weight']
    const before = names.map((name) => model.session.read(name))
    model.freeze('backbone')
    expect(model.summary().trainableParams).toBe(1280 * 3 + 3)
    await new Trainer({ ...SMALL, model, maxEpochs: 1 }).fit(data)
    const same = names.map((name, i) => Buffer.from(model.session.read(name).buffer).equals(Buffer.from(before[i]!.buffer)))
    expect(same).toEqual([true, true, true, false])
  })
})

describe('what goes wrong', () => {
  it('a folder that holds a run', async () => {
    const outDir = fresh()
    await train({ outDir, maxEpochs: 1 })
    await expect(train({ outDir, maxEpochs: 1 })).rejects.toThrow(code('EFF_RUN_EXISTS'))
  })

  it('other classes than the model has', async () => {
    await using model = await createModel('tf_efficientnet_b0', { numClasses: 4 })
    await expect(new Trainer({ ...SMALL, model }).fit(data)).rejects.toThrow(code('EFF_DATA_LABEL'))
  })

  it('a loss that is no number: the checkpoint before stays', async () => {
    const outDir = fresh()
    const run = train({
      outDir,
      lr: 1e30,
      warmupEpochs: 0,
      schedule: 'constant',
      optimizer: 'sgd',
      checkpoint: { everySteps: 1 },
    })
    await expect(run).rejects.toThrow(code('EFF_NAN'))
    expect(JSON.parse(readFileSync(path.join(outDir, 'status.json'), 'utf8'))).toMatchObject({ state: 'failed' })
    await using model = await loadModel(path.join(outDir, 'checkpoints/last'))
    expect(model.classes?.length).toBe(3)
  })

  it('a model that is frozen as a whole', async () => {
    await using model = await make()
    model.freeze('all')
    const outDir = fresh()
    const run = new Trainer({ ...SMALL, model, outDir, maxEpochs: 1 }).fit(data)
    await expect(run).rejects.toMatchObject({
      code: 'EFF_CONFIG_VALUE',
      message: expect.stringMatching(/nothing is left to train/),
    })
    expect(existsSync(outDir)).toBe(false)
  })

  it('no data', async () => {
    await using model = await make()
    const trainer = new Trainer({ ...SMALL, model, maxEpochs: 1 })
    for (const given of [undefined, {}, { train: 'photos' }, { train: data.train, val: 5 }])
      await expect(trainer.fit(given as never)).rejects.toThrow(code('EFF_INVALID_ARGUMENT'))
  })

  it('a metric that nobody measures: before the first step, or where a callback may add it after the first validation', async () => {
    const seen: string[] = []
    const watch: Callback = { name: 'watch', onStepEnd: () => void seen.push('step') }
    const checkpoint = { monitor: 'val/top3' }
    const wrong = expect.objectContaining({
      code: 'EFF_CONFIG_VALUE',
      hint: expect.stringMatching(/did you mean val\/top[15]\?.*train\/loss/),
    })
    await expect(train({ checkpoint, callbacks: [watch] })).rejects.toThrow(wrong)
    expect(seen).toEqual([])
    const adds = (name: string): Callback => ({
      name: 'adds',
      onValidationEnd: (_, e) => void Object.assign(e.metrics, { [name]: 1 }),
    })
    await expect(train({ maxEpochs: 1, checkpoint, callbacks: [adds('val/top4')] })).rejects.toThrow(wrong)
    expect((await train({ maxEpochs: 1, checkpoint, callbacks: [adds('val/top3')] })).best).toMatchObject({ value: 1 })
    const early = (monitor: string) => train({ maxEpochs: 2, callbacks: [new EarlyStopping({ monitor })] })
    await expect(early('val/f1')).rejects.toThrow(code('EFF_CONFIG_VALUE'))
    const unmeasured = train({ maxEpochs: 2, callbacks: [watch, new EarlyStopping()] }, { train: data.train })
    await expect(unmeasured).rejects.toThrow(/monitor = "val\/top1": no such metric/)
    expect(seen).toEqual([])
  })

  it('two trainers that fit one model at once: the second waits for the first', async () => {
    await using model = await make()
    const first = new Trainer({ ...SMALL, model, maxEpochs: 1 })
    const second = new Trainer({ ...SMALL, model, maxEpochs: 1 })
    const run = first.fit(data)
    await expect(second.fit(data)).rejects.toThrow(expect.objectContaining({ code: 'EFF_INVALID_ARGUMENT' }))
    await run
    expect(await second.fit(data)).toMatchObject({ status: 'finished' })
  })

  it('unreadable files are skipped and listed up to a limit', async () => {
    const dir = await makeData(path.join(root, 'bad'), { train: 6, val: 1 })
    const broken = path.join(dir, 'train/green/000.jpg')
    writeFileSync(broken, 'no image')
    const outDir = fresh()
    const result = await train({ outDir, maxEpochs: 1 }, await imageFolder(dir))
    expect(result.badFiles.map((b) => b.path)).toEqual([broken])
    expect(readFileSync(path.join(outDir, 'bad_files.csv'), 'utf8')).toContain(broken)
    await expect(train({ maxEpochs: 1, maxBad: 0 }, await imageFolder(dir))).rejects.toThrow(code('EFF_DATA_DECODE'))
  })

  it('a callback that throws at the very end: a warning before the end, the result stays', async () => {
    await using model = await make()
    const broken: Callback = { name: 'broken', onTeardown: () => Promise.reject(new Error('from onTeardown')) }
    const trainer = new Trainer({ ...SMALL, model, maxSteps: 1, callbacks: [broken] })
    const events = collect(trainer)
    expect(await trainer.fit(data)).toMatchObject({ status: 'finished' })
    expect((await events).slice(-2)).toMatchObject([
      { type: 'warning', code: 'after-error', message: 'onTeardown: from onTeardown' },
      { type: 'end' },
    ])
  })

  it('a callback that throws: checkpoint first', async () => {
    const outDir = fresh()
    const broken: Callback = {
      name: 'broken',
      onStepEnd(_, event) {
        if (event.step === 2) throw new Error('from the callback')
      },
    }
    await expect(train({ outDir, callbacks: [broken] })).rejects.toThrow('from the callback')
    const state = JSON.parse(readFileSync(path.join(outDir, 'checkpoints/last/state.json'), 'utf8'))
    expect(state.step).toBe(2)
  })
})

describe('beside a run', () => {
  it('the program may predict at any time: saves and the moving average wait for it', async () => {
    await using model = await make()
    const trainer = new Trainer({ ...SMALL, model, outDir: fresh(), ema: 0.9, checkpoint: { everySteps: 1 } })
    let running = true
    const predictions = (async () => {
      while (running) await model.predict(data.val!.files[0]!, { imageSize: 32 })
    })()
    try {
      expect(await trainer.fit(data)).toMatchObject({ status: 'finished', step: 6 })
    } finally {
      running = false
      await predictions
    }
  })

  it('a failing onWarning ends it as any callback does', async () => {
    const broken: Callback = { name: 'broken', onWarning: () => Promise.reject(new Error('from onWarning')) }
    await expect(train({ batchSize: 64, callbacks: [broken] })).rejects.toThrow('from onWarning')
  })

  it('closing the model leaves a failed run, not a running one', async () => {
    const outDir = fresh()
    const model = await make()
    const trainer = new Trainer({ ...SMALL, model, outDir, maxEpochs: 50 })
    const run = trainer.fit(data)
    for await (const e of trainer.events()) if (e.type === 'step') break
    await Promise.all([expect(run).rejects.toThrow(/EFF_|closed/), model.close()])
    expect(JSON.parse(readFileSync(path.join(outDir, 'status.json'), 'utf8')).state).toBe('failed')
  })
})

describe('resume', () => {
  let whole: string
  beforeAll(async () => {
    whole = fresh()
    await train({ outDir: whole, maxEpochs: 3, ema: 0.99 })
  })

  const expectSameCheckpoint = (dir: string, other: string) => {
    for (const file of ['model.safetensors', 'ema.safetensors', 'optimizer.safetensors']) {
      const [a, b] = [dir, other].map((each) => bytes(path.join(each, 'checkpoints/last'), file))
      expect(a!.equals(b!), file).toBe(true)
    }
  }

  const stopAt = (step: number, trainer: () => Trainer): Callback => ({
    name: 'stop',
    onStepEnd(_, event) {
      if (event.step === step) trainer().stop('test')
    },
  })

  it.each([3, 5])('after a stop at step %d ends with the bytes of the whole run', async (step) => {
    const outDir = fresh()
    const options = { ...SMALL, outDir, maxEpochs: 3, ema: 0.99 }
    {
      await using model = await make()
      const trainer: Trainer = new Trainer({ ...options, model, callbacks: [stopAt(step, () => trainer)] })
      expect(await trainer.fit(data)).toMatchObject({ status: 'interrupted', reason: 'test', step })
    }
    await using model = await other()
    const trainer = new Trainer({ ...options, model })
    const events = collect(trainer)
    const result = await trainer.fit({ ...data, resume: 'last' })
    expect(result).toMatchObject({ status: 'finished', step: 9 })
    expect((await events)[0]).toMatchObject({ type: 'start', resumed: { step } })
    expectSameCheckpoint(outDir, whole)
    const rows = [outDir, whole].map((dir) =>
      readFileSync(path.join(dir, 'metrics.csv'), 'utf8')
        .trim()
        .split('\n')
        .map((line) => line.split(',').toSpliced(-2, 2).toSpliced(2, 1)),
    )
    expect(rows[0]).toEqual(rows[1])
  })

  it('after a stop between updates of two batches each ends with the bytes of the whole run', async () => {
    const options = { ...SMALL, batchSize: 4, accumulate: 2, maxEpochs: 2, ema: 0.99 }
    const [unbroken, outDir] = [fresh(), fresh()]
    await train({ ...options, outDir: unbroken })
    await using first = await make()
    const stopped: Trainer = new Trainer({ ...options, outDir, model: first, callbacks: [stopAt(2, () => stopped)] })
    expect(await stopped.fit(data)).toMatchObject({ status: 'interrupted', step: 2 })
    await using model = await other()
    const trainer = new Trainer({ ...options, outDir, model })
    expect(await trainer.fit({ ...data, resume: 'last' })).toMatchObject({ status: 'finished', step: 6 })
    expectSameCheckpoint(outDir, unbroken)
  })

  it('after kill -9 within an epoch ends with the bytes of the whole run', async () => {
    const outDir = fresh()
    const child = path.join(path.dirname(fileURLToPath(import.meta.url)), 'helpers/train_child.ts')
    const settings = { ...SMALL, outDir, maxEpochs: 3, ema: 0.99, checkpoint: { everySteps: 2 } }
    const run = spawnSync(process.execPath, ['--import', 'tsx', child, data.root, JSON.stringify(settings)], {
      env: { ...process.env, EFFNET_FAULT: 'step:5' },
      encoding: 'utf8',
      timeout: 120_000,
    })
    expect(run.signal, run.stderr).toBe('SIGKILL')
    await using model = await other()
    const trainer = new Trainer({ ...settings, model })
    const events = collect(trainer)
    await trainer.fit({ ...data, resume: 'auto' })
    // The save of step 4 may not have been complete; then it is the one before.
    expect((await events)[0]).toMatchObject({
      type: 'start',
      resumed: { step: expect.toSatisfy((n: number) => n >= 2 && n <= 4) },
    })
    expectSameCheckpoint(outDir, whole)
  })

  it('of a finished run returns its result', async () => {
    const result = await train({ outDir: whole, maxEpochs: 3, ema: 0.99 }, { ...data, resume: 'auto' })
    expect(result).toMatchObject({ status: 'finished', step: 9, checkpoint: path.join(whole, 'checkpoints/last') })
  })

  it("'auto' starts where there is no checkpoint, 'last' does not", async () => {
    const outDir = fresh()
    await expect(train({ outDir, maxEpochs: 1 }, { ...data, resume: 'last' })).rejects.toThrow(code('EFF_CKPT_MISSING'))
    expect(await train({ outDir, maxEpochs: 1 }, { ...data, resume: 'auto' })).toMatchObject({ status: 'finished', step: 3 })
  })

  /** Flips the last bit; the file gets its own inode, so that hard links of it stay sound. */
  const damage = (file: string) => {
    const bytes = readFileSync(file)
    bytes[bytes.length - 1]! ^= 1
    rmSync(file)
    writeFileSync(file, bytes)
  }

  it('skips a damaged checkpoint, says which file and tensor, and ends with the bytes of the whole run', async () => {
    const options = { ...SMALL, outDir: fresh(), maxEpochs: 3, ema: 0.99, checkpoint: { everySteps: 2 } }
    {
      await using model = await make()
      const trainer: Trainer = new Trainer({ ...options, model, callbacks: [stopAt(5, () => trainer)] })
      await trainer.fit(data)
    }
    const last = path.join(options.outDir, 'checkpoints/last')
    damage(path.join(last, 'optimizer.safetensors'))
    const named = train(options, { ...data, resume: last })
    await expect(named).rejects.toThrow(/last\/optimizer\.safetensors: tensor \S+exp_avg_sq changed/)
    await expect(named).rejects.toMatchObject({ code: 'EFF_CKPT_CORRUPT', hint: expect.stringContaining(options.outDir) })
    await using model = await other()
    const trainer = new Trainer({ ...options, model })
    const events = collect(trainer)
    expect(await trainer.fit({ ...data, resume: 'auto' })).toMatchObject({ status: 'finished', step: 9 })
    const warned = (await events).filter((e) => e.type === 'warning')
    expect(warned.map((e) => e.message)).toEqual([
      expect.stringMatching(/^skipped .*last\/optimizer\.safetensors: tensor \S+ changed .* going on from .*last \(step 4\)$/),
    ])
    expect(existsSync(`${last}.damaged/optimizer.safetensors`)).toBe(true)
    expect(bytes(last).equals(bytes(path.join(whole, 'checkpoints/last')))).toBe(true)
  })

  it('from a run whose checkpoints are all damaged is refused', async () => {
    const outDir = fresh()
    await train({ outDir, maxEpochs: 1 })
    for (const name of ['last', 'best']) damage(path.join(outDir, 'checkpoints', name, 'model.json'))
    const run = train({ outDir, maxEpochs: 2 }, { ...data, resume: 'auto' })
    await expect(run).rejects.toThrow(/last\/model\.json: its contents changed/)
    await expect(loadModel(path.join(outDir, 'checkpoints/last'))).rejects.toThrow(code('EFF_CKPT_CORRUPT'))
  })

  it('with other options warns of each', async () => {
    const outDir = fresh()
    await train({ outDir, maxSteps: 2 })
    await using model = await make()
    model.freeze('backbone')
    const trainer = new Trainer({ ...SMALL, model, outDir, maxSteps: 4, labelSmoothing: 0.2 })
    const events = collect(trainer)
    await trainer.fit({ ...data, resume: 'auto' })
    const warned = (await events).filter((e) => e.type === 'warning').map((e) => e.message)
    expect(warned.filter((m) => /labelSmoothing was 0.1/.test(m)).length).toBe(1)
    expect(warned.filter((m) => /^0 parameters were frozen/.test(m)).length).toBe(1)
    expect(warned.filter((m) => /maxSteps was 2/.test(m)).length).toBe(1)
  })
})

describe('ending a run', () => {
  it('by a signal: a checkpoint, then EFF_ABORTED', async () => {
    const outDir = fresh()
    const abort = new AbortController()
    const at: Callback = { name: 'at', onStepEnd: (_, e) => (e.step === 2 ? abort.abort() : undefined) }
    await expect(train({ outDir, signal: abort.signal, callbacks: [at] })).rejects.toThrow(code('EFF_ABORTED'))
    expect(JSON.parse(readFileSync(path.join(outDir, 'checkpoints/last/state.json'), 'utf8')).step).toBe(2)
    expect(JSON.parse(readFileSync(path.join(outDir, 'status.json'), 'utf8')).state).toBe('interrupted')
  })

  it('by a signal while it validates: the rest of the validation is left out', async () => {
    const outDir = fresh()
    const options = { ...SMALL, outDir, evalBatchSize: 3 }
    const seen: number[] = []
    {
      await using model = await make()
      const abort = new AbortController()
      const at: Callback = {
        name: 'at',
        onValidationBatch(_, e) {
          seen.push(e.done)
          abort.abort()
        },
      }
      const trainer = new Trainer({ ...options, model, signal: abort.signal, callbacks: [at] })
      await expect(trainer.fit(data)).rejects.toThrow(code('EFF_ABORTED'))
    }
    expect(seen).toEqual([3])
    await using model = await other()
    const whole = await train({ evalBatchSize: 3 })
    const result = await new Trainer({ ...options, model }).fit({ ...data, resume: 'last' })
    expect(result.metrics['val/loss']).toBe(whole.metrics['val/loss'])
    await expect(evaluateModel(model, { data: data.val!, signal: AbortSignal.abort() })).rejects.toThrow(code('EFF_ABORTED'))
  })

  it('by its time', async () => {
    const result = await train({ maxTime: 1, maxEpochs: 50 })
    expect(result).toMatchObject({ status: 'interrupted', reason: 'time', step: 1 })
  })

  it('by a metric that does not improve', async () => {
    const stop = new EarlyStopping({ monitor: 'train/loss', minDelta: 100, patience: 2 })
    const result = await train({ maxEpochs: 50, callbacks: [stop] })
    expect(result).toMatchObject({ status: 'finished', reason: 'early-stop', epoch: 3 })
  })

  it('by close while it runs', async () => {
    const model: Model = await make()
    const trainer = new Trainer({ ...SMALL, model, maxEpochs: 50 })
    const run = trainer.fit(data)
    for await (const e of trainer.events()) if (e.type === 'step') break
    await trainer.close()
    expect(await run).toMatchObject({ status: 'interrupted', reason: 'closed' })
    await model.close()
    await expect(model.predict(data.val!.files[0]!)).rejects.toThrow(code('EFF_CLOSED'))
    await expect(trainer.fit(data)).rejects.toThrow(code('EFF_CLOSED'))
  })
})

describe('evaluate and predict of a trainer', () => {
  it('use its checkpoints and its crop', async () => {
    const outDir = fresh()
    await using model = await make()
    const trainer = new Trainer({ ...SMALL, model, outDir, maxEpochs: 2 })
    const result = await trainer.fit(data)
    const best = await trainer.evaluate({ data: data.val!, checkpoint: 'best' })
    expect(best.metrics['val/top1']).toBe(result.best!.value)
    const [prediction] = await trainer.predict(data.val!.files[0]!)
    expect(prediction).toMatchObject({ path: data.val!.files[0], topk: [{ label: expect.any(String) }, {}, {}] })
    expect(existsSync(path.join(outDir, 'report.html'))).toBe(true)
  })
})
