/** How a run ends when it is told to while it validates, and which weights its figures are of. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { beforeEach, describe, expect, it } from 'vitest'
import type { ImageFolder } from '../../ts/data/types.js'
import type { Model } from '../../ts/model.js'
import { evaluateModel } from '../../ts/train/evaluate.js'
import { Trainer } from '../../ts/train/trainer.js'
import type { Callback, FitOptions, TrainerOptions } from '../../ts/train/types.js'
import { smallRuns } from './helpers/small_run.js'

const open = smallRuns()

let data: ImageFolder
let model: Model
let out: string

beforeEach(async () => {
  ;({ data, model, out } = await open())
})

/** Epochs of two steps. */
const trainer = (hook: Omit<Callback, 'name'> = {}, options: Partial<TrainerOptions> = {}): Trainer =>
  new Trainer({ model, batchSize: 4, maxEpochs: 3, lr: 1e-3, outDir: out, callbacks: [{ name: 'test', ...hook }], ...options })
const both = (resume?: FitOptions['resume']): FitOptions => ({
  train: data.train,
  val: data.val!,
  ...(resume === undefined ? {} : { resume }),
})
const read = (file: string) => JSON.parse(readFileSync(path.join(out, file), 'utf8'))

async function expectMeasured(loss: number | undefined): Promise<void> {
  const { metrics } = await evaluateModel(model, { data: data.val!, batchSize: 4, imageSize: 32 })
  expect(loss).toBe(metrics['val/loss'])
}

describe('a stop in the validation of a run that ends within an epoch', () => {
  it('interrupts it, and a resume validates', async () => {
    const hook: Omit<Callback, 'name'> = { onValidationBatch: (ctx) => (ctx.step === 3 ? run.stop('test') : undefined) }
    const run: Trainer = trainer(hook, { maxSteps: 3 })
    const result = await run.fit(both())
    expect(result).toMatchObject({ status: 'interrupted', reason: 'test', step: 3 })
    expect(Object.keys(result.metrics)).toEqual(['train/loss', 'train/top1'])
    expect(read('status.json').state).toBe('interrupted')
    expect(read('checkpoints/last/state.json').result).toBeNull()
    const again = await trainer({}, { maxSteps: 3 }).fit(both('last'))
    expect(again).toMatchObject({ status: 'finished', reason: 'steps', step: 3 })
    await expectMeasured(again.metrics['val/loss'])
  })

  it('aborts it where it was an abort', async () => {
    const abort = new AbortController()
    const hook = { onValidationBatch: () => abort.abort() }
    const run = trainer(hook, { maxSteps: 1, signal: abort.signal }).fit(both())
    await expect(run).rejects.toThrow(expect.objectContaining({ code: 'EFF_ABORTED' }))
    expect(read('status.json').state).toBe('interrupted')
  })

  it('goes before the word of a callback that had ended it as finished', async () => {
    const hook: Omit<Callback, 'name'> = {
      onStepEnd: (ctx) => ctx.stop('enough'),
      onValidationBatch: () => run.stop('SIGTERM'),
    }
    const run: Trainer = trainer(hook)
    expect(await run.fit(both())).toMatchObject({ status: 'interrupted', reason: 'SIGTERM', step: 1 })
  })
})

describe('the weights that a run ends with are measured whatever valEvery is', () => {
  it.each<[string, Omit<Callback, 'name'>]>([
    ['within an epoch', { onStepEnd: (ctx) => (ctx.step === 3 ? ctx.stop('enough') : undefined) }],
    ['at the end of an epoch', { onEpochEnd: (ctx) => ctx.stop('enough') }],
  ])('when a callback ends it %s', async (_, hook) => {
    const result = await trainer(hook, { valEvery: 2 }).fit(both())
    expect(result).toMatchObject({ status: 'finished', reason: 'enough', best: { step: result.step } })
    await expectMeasured(result.metrics['val/loss'])
  })
})
