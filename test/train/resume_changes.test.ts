/** A run that goes on with more, or less, than it began with. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { beforeEach, describe, expect, it, vi } from 'vitest'
import type { ImageFolder } from '../../ts/data/types.js'
import { EffnetError } from '../../ts/errors.js'
import type { Model } from '../../ts/model.js'
import type { ResumePoint } from '../../ts/train/resume.js'
import { finishedResult } from '../../ts/train/run_result.js'
import { Trainer } from '../../ts/train/trainer.js'
import type { Callback, FitOptions, FitResult, ResolvedOptions, TrainerOptions } from '../../ts/train/types.js'
import { smallRuns } from './helpers/small_run.js'

const open = smallRuns()

let data: ImageFolder
let model: Model
let out: string

beforeEach(async () => {
  ;({ data, model, out } = await open())
})

const fit = (options: Partial<TrainerOptions>, fitted: Partial<FitOptions> = {}): Promise<FitResult> =>
  new Trainer({ model, batchSize: 4, lr: 1e-3, outDir: out, ema: false, ...options }).fit({ train: data.train, ...fitted })

describe('a resumed run', () => {
  it('may begin to validate and to average; its table has the columns of both', async () => {
    await fit({ maxEpochs: 1 })
    const weights = model.session.read('conv_stem.weight')
    const result = await fit({ maxEpochs: 2, ema: 0.5 }, { val: data.val!, resume: 'last' })
    expect(result).toMatchObject({ status: 'finished', epoch: 2 })
    expect(Object.keys(result.metrics)).toEqual(expect.arrayContaining(['val/loss', 'val_ema/loss']))
    const [header, ...rows] = readFileSync(path.join(out, 'metrics.csv'), 'utf8').trimEnd().split('\n')
    expect(rows.map((row) => row.split(',').length)).toEqual([1, 1].map(() => header!.split(',').length))
    expect(header!.split(',').slice(3, 5)).toEqual(['train/loss', 'train/top1'])
    const column = header!.split(',').indexOf('val_ema/loss')
    expect(rows.map((row) => row.split(',')[column])).toEqual(['', String(result.metrics['val_ema/loss'])])
    // It begins with the weights that were there: the average lies between them and those of now.
    const state = JSON.parse(readFileSync(path.join(out, 'checkpoints/last/state.json'), 'utf8'))
    expect(state.emaUpdates).toBe(2)
    await model.loadWeights(path.join(out, 'checkpoints/last'), { ema: true })
    const average = model.session.read('conv_stem.weight')
    await model.loadWeights(path.join(out, 'checkpoints/last'))
    const now = model.session.read('conv_stem.weight')
    const distance = (a: Float32Array, b: Float32Array): number => Math.hypot(...a.map((v, i) => v - b[i]!))
    expect(distance(average, now)).toBeGreaterThan(0)
    expect(distance(average, weights)).toBeLessThan(2 * distance(now, weights))
  })

  it('that had ended tells of no batch that was made to fit the images, as its own was', async () => {
    const told: string[] = []
    const ofBatch = /\b(?:batchSize|accumulate) was \d+ and is \d+/g
    const callbacks: Callback[] = [
      {
        name: 'told',
        onWarning: (_, { code, message }) => void (code === 'resume-finished' && told.push(...(message.match(ofBatch) ?? []))),
      },
    ]
    const images = data.train.length
    await fit({ maxEpochs: 1, batchSize: 1000, callbacks })
    await fit({ maxEpochs: 1, batchSize: 1000, callbacks }, { resume: 'last' })
    await fit({ maxEpochs: 1, batchSize: images, accumulate: 2, callbacks }, { resume: 'last' })
    expect(told).toEqual([])
    await fit({ maxEpochs: 1, batchSize: images - 1, callbacks }, { resume: 'last' })
    expect(told).toEqual([`batchSize was ${images} and is ${images - 1}`])
  })

  it('that had ended gives NaN where its checkpoint has null', () => {
    const stored = { status: 'finished', reason: 'epochs', metrics: { 'val/loss': null, 'val/top1': 50 } }
    const point = { state: { epoch: 1, result: stored, options: {} } } as unknown as ResumePoint
    const result = finishedResult(point, { maxEpochs: 1 } as ResolvedOptions)
    expect(result?.metrics).toEqual({ 'val/loss': Number.NaN, 'val/top1': 50 })
  })
})

it('a run that failed before its first checkpoint leaves its folder to the next', async () => {
  vi.spyOn(model.session, 'trainPlan').mockRejectedValueOnce(new EffnetError('EFF_OOM', 'too large'))
  await expect(fit({ maxEpochs: 1 })).rejects.toThrow('too large')
  expect(JSON.parse(readFileSync(path.join(out, 'status.json'), 'utf8')).state).toBe('failed')
  expect(await fit({ maxEpochs: 1 })).toMatchObject({ status: 'finished', step: 2 })
})
