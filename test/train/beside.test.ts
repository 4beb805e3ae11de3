/** What a program does with a trainer and its data beside, before and after a run. */
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { beforeEach, describe, expect, it } from 'vitest'
import { imageFolder } from '../../ts/data/image_folder.js'
import type { ImageFolder } from '../../ts/data/types.js'
import type { Model } from '../../ts/model.js'
import { evaluateModel } from '../../ts/train/evaluate.js'
import { Trainer } from '../../ts/train/trainer.js'
import type { Callback, TrainerEvent, TrainerOptions } from '../../ts/train/types.js'
import { smallRuns } from './helpers/small_run.js'

const open = smallRuns()

let data: ImageFolder
let model: Model
let out: string

beforeEach(async () => {
  ;({ data, model, out } = await open())
})

const make = (options: Partial<TrainerOptions> = {}): Trainer =>
  new Trainer({ model, batchSize: 4, maxEpochs: 1, lr: 1e-3, outDir: out, ...options })
const code = (c: string) => expect.objectContaining({ code: c })

async function collect(events: AsyncIterable<TrainerEvent>): Promise<TrainerEvent[]> {
  const all: TrainerEvent[] = []
  for await (const event of events) all.push(event)
  return all
}

describe('a trainer', () => {
  it('evaluates no checkpoint while it trains: that would replace the weights', async () => {
    let refused: unknown
    const evaluating: Callback = {
      name: 'evaluating',
      async onStepEnd() {
        refused ??= await trainer.evaluate({ data: data.val!, checkpoint: 'last' }).catch((cause) => cause)
      },
    }
    const trainer: Trainer = make({ callbacks: [evaluating], checkpoint: { everySteps: 1 } })
    await trainer.fit({ train: data.train })
    expect(refused).toMatchObject({ code: 'EFF_INVALID_ARGUMENT', message: expect.stringContaining('weights that fit trains') })
    expect((await trainer.evaluate({ data: data.val!, checkpoint: 'last' })).images).toBe(4)
  })

  it('whose run cannot begin ends the events of it', async () => {
    const trainer = make({ callbacks: [{ name: 'twin' }, { name: 'twin' }] })
    const events = collect(trainer.events())
    await expect(trainer.fit({ train: data.train })).rejects.toThrow(code('EFF_CONFIG_VALUE'))
    expect(await events).toMatchObject([{ type: 'end', error: { code: 'EFF_CONFIG_VALUE' } }])
    await expect(trainer.fit({ train: data.train })).rejects.toThrow(code('EFF_CONFIG_VALUE'))
  })

  it('that was closed has no events', async () => {
    const trainer = make()
    await trainer.close()
    expect(await collect(trainer.events())).toEqual([])
  })
})

it('a model that is saved while the average is measured is saved with its weights', async () => {
  const saved: string[] = []
  const saving: Callback = {
    name: 'saving',
    async onValidationBatch() {
      for (const name of [`${saved.length}`, `${saved.length}.safetensors`]) await model.save(path.join(out, 'saved', name))
      saved.push(path.join(out, 'saved', `${saved.length}.safetensors`))
    },
  }
  mkdirSync(path.join(out, 'saved'))
  await make({ ema: 0.5, evalBatchSize: 2, callbacks: [saving], outDir: path.join(out, 'run') }).fit({
    train: data.train,
    val: data.val!,
  })
  // Of the weights and of their average, two batches each.
  expect(saved.length).toBe(4)
  const weights = readFileSync(path.join(out, 'run/checkpoints/last/model.safetensors'))
  for (const file of saved) {
    expect(readFileSync(file).equals(weights), file).toBe(true)
    const folder = file.replace('.safetensors', '/model.safetensors')
    expect(readFileSync(folder).equals(weights), folder).toBe(true)
  }
})

describe('an evaluation in which no image can be read', () => {
  it('is an error', async () => {
    for (const name of ['cat', 'dog']) {
      mkdirSync(path.join(out, 'torn', name), { recursive: true })
      writeFileSync(path.join(out, 'torn', name, '0.jpg'), 'no image')
    }
    const torn = await imageFolder(path.join(out, 'torn'), { split: 'val' })
    await expect(evaluateModel(model, { data: torn, imageSize: 32 })).rejects.toMatchObject({
      code: 'EFF_DATA_EMPTY',
      message: expect.stringContaining('none of its 2 images'),
      details: { badFiles: [expect.anything(), expect.anything()] },
    })
    cpSync(data.val!.files[0]!, path.join(out, 'torn/cat/1.jpg'))
    const one = await imageFolder(path.join(out, 'torn'), { split: 'val' })
    expect(await evaluateModel(model, { data: one, imageSize: 32 })).toMatchObject({ images: 1 })
  })
})
