/** Files of a run that cannot be written, beside its checkpoints: the run goes on or ends with its code, the weights are kept. */
import { existsSync, readFileSync, renameSync, symlinkSync } from 'node:fs'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { ImageFolder } from '../../ts/data/types.js'
import type { Model } from '../../ts/model.js'
import { logWriteCount } from '../../ts/train/fault.js'
import { Trainer } from '../../ts/train/trainer.js'
import type { Callback, FitResult, WarningEvent } from '../../ts/train/types.js'
import { smallRuns } from './helpers/small_run.js'

const open = smallRuns()

let data: ImageFolder
let model: Model
let out: string
let warnings: WarningEvent[]

beforeEach(async () => {
  ;({ data, model, out } = await open())
  warnings = []
})
afterEach(() => vi.unstubAllEnvs())

/** Two epochs of two steps; `hook` is a callback of the test. */
function run(hook: Omit<Callback, 'name'>): Promise<FitResult> {
  const callback: Callback = { name: 'test', onWarning: (_, event) => void warnings.push(event), ...hook }
  const options = { model, batchSize: 4, maxEpochs: 2, lr: 1e-4, logEvery: 1, outDir: out, callbacks: [callback] }
  return new Trainer(options).fit({ train: data.train, val: data.val!, resume: 'auto' })
}
const state = () => JSON.parse(readFileSync(path.join(out, 'checkpoints/last/state.json'), 'utf8')) as { step: number }
const status = () => JSON.parse(readFileSync(path.join(out, 'status.json'), 'utf8')) as { state: string; message: string }

describe('a run whose files cannot be written', () => {
  it('goes on without its logs, says so once and saves its weights', async () => {
    const result = await run({
      onFitStart() {
        for (const name of ['steps.jsonl', 'metrics.csv']) {
          renameSync(path.join(out, name), path.join(out, `${name}.1`))
          symlinkSync(path.join(out, 'nowhere', name), path.join(out, name))
        }
      },
    })
    expect(result).toMatchObject({ status: 'finished', step: 4 })
    expect(warnings.map((e) => `${e.code} ${path.basename(e.message.split(':')[0]!)}`)).toEqual([
      'EFF_IO steps.jsonl',
      'EFF_IO metrics.csv',
      'log-lost steps.jsonl',
      'log-lost metrics.csv',
    ])
    expect(state().step).toBe(4)
    expect(status().state).toBe('finished')
    expect(existsSync(path.join(out, 'report.html'))).toBe(true)
  })

  it('ends with the code of the disk where its results have no place, after its weights are saved, and is finished by a resume', async () => {
    const full = {
      onEpochEnd: ({ epoch }: { epoch: number }) => {
        if (epoch === 2) vi.stubEnv('EFFNET_FAULT', `log:${logWriteCount() + 1}+:enospc`)
      },
    }
    await expect(run(full)).rejects.toThrow(expect.objectContaining({ code: 'EFF_CKPT_NO_SPACE' }))
    expect(state().step).toBe(4)
    vi.unstubAllEnvs()
    const heard: string[] = []
    const result = await run({
      onStepEnd: () => void heard.push('step'),
      onValidationStart: () => void heard.push('start'),
      onValidationBatch: () => void heard.push('batch'),
      onValidationEnd: (_, event) => void heard.push(`end of ${event.epoch}`),
    })
    expect([...new Set(heard)]).toEqual(['start', 'batch', 'end of 2'])
    expect(result).toMatchObject({ status: 'finished', epoch: 2, step: 4 })
    expect(Object.keys(result.metrics)).toContain('val/loss')
    const stored = JSON.parse(readFileSync(path.join(out, 'results.json'), 'utf8'))
    expect(stored.details.perClass).toHaveLength(data.classes.length)
    expect(status().state).toBe('finished')
  })
})
