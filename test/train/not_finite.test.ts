/** NaN and infinity: the first layer and the step are named, the checkpoint before is kept, nothing is written over it. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { beforeEach, describe, expect, it } from 'vitest'
import type { ImageFolder } from '../../ts/data/types.js'
import type { EffnetError } from '../../ts/errors.js'
import type { Model } from '../../ts/model.js'
import { evaluateModel } from '../../ts/train/evaluate.js'
import { Trainer } from '../../ts/train/trainer.js'
import type { Callback, TrainerOptions } from '../../ts/train/types.js'
import { smallRuns } from './helpers/small_run.js'

const open = smallRuns()

let data: ImageFolder
let model: Model
let out: string

beforeEach(async () => {
  ;({ data, model, out } = await open())
})

/** Writes one number into a tensor of the session. */
function plant(name: string, value: number): void {
  const values = model.session.read(name)
  values[values.length >> 1] = value
  model.session.write(name, values)
}

const atStep = (step: number, work: () => void): Callback => ({
  name: 'plant',
  onStepStart: (ctx) => {
    if (ctx.step === step) work()
  },
})

async function failure(options: Partial<TrainerOptions> = {}): Promise<EffnetError> {
  const trainer = new Trainer({
    model,
    batchSize: 4,
    maxEpochs: 4,
    lr: 1e-4,
    outDir: out,
    checkpoint: { everySteps: 1 },
    ...options,
  })
  const error = await trainer.fit({ train: data.train, ...(options.valEvery === 0 ? {} : { val: data.val! }) }).then(
    () => undefined,
    (cause: EffnetError) => cause,
  )
  expect(error).toMatchObject({ code: 'EFF_NAN' })
  return error!
}

const last = () => path.join(out, 'checkpoints/last')

/** The weights in the kept checkpoint are numbers, and of the step that the message names. */
async function expectKept(step: number): Promise<void> {
  const state = JSON.parse(readFileSync(path.join(last(), 'state.json'), 'utf8'))
  expect(state.step).toBe(step)
  const bytes = readFileSync(path.join(last(), 'model.safetensors'))
  const header = Number(bytes.readBigUInt64LE(0))
  for (let at = 8 + header; at < bytes.length; at += 4) {
    if (!Number.isFinite(bytes.readFloatLE(at))) throw new Error(`byte ${at} of the checkpoint is not finite`)
  }
}

describe('training', () => {
  it('names the weights that were not finite before the step', async () => {
    const error = await failure({ callbacks: [atStep(3, () => plant('blocks.3.0.conv_pw.weight', Number.NaN))] })
    expect(error.message).toMatch(/^loss is NaN in step 4 \(epoch 2, lr /)
    expect(error.message).toContain('in the weights, before this step: blocks.3.0.conv_pw.weight')
    expect(error.message).toContain(`the checkpoint of step 3 is kept: ${last()}`)
    expect(error.details['first']).toMatchObject({ part: 'weights', tensor: 'blocks.3.0.conv_pw.weight' })
    expect(error.hint).toMatch(/sound weights/)
    await expectKept(3)
    const status = JSON.parse(readFileSync(path.join(out, 'status.json'), 'utf8'))
    expect(status).toMatchObject({ state: 'failed', message: expect.stringContaining('EFF_NAN: loss is NaN in step 4') })
  })

  it('names the layer where a forward pass overflows', async () => {
    // Finite, but a product of two is not.
    const error = await failure({
      callbacks: [atStep(2, () => model.session.write('conv_stem.weight', model.session.read('conv_stem.weight').fill(3e38)))],
    })
    expect(error.message).toMatch(/in step 3 /)
    expect(error.details['first']).toMatchObject({ part: 'forward', layer: expect.stringMatching(/^(conv_stem|bn1)/) })
    await expectKept(2)
  })

  it('stops in the step whose update explodes, before its weights are saved', async () => {
    const error = await failure({ lr: 1e38, warmupEpochs: 0, optimizer: 'sgd', schedule: 'constant', valEvery: 0 })
    expect(error.message).toMatch(/in step [1-4] \(epoch 1, lr 1e\+38\)/)
    expect(error.details['first']).toMatchObject({ part: expect.stringMatching(/weights|forward|backward|gradient/) })
    expect(error.hint).toMatch(/lower lr|sound weights/)
  })

  it('names the running statistic that overflows, before it is saved', async () => {
    const scale = () => plant('blocks.6.0.bn3.weight', 2e38)
    const error = await failure({ callbacks: [atStep(2, scale)], valEvery: 0 })
    expect(error.message).toMatch(/^the update is not finite in step 3 .*\(conv2d_stats, forward\): tensor bn2\.running_var/)
    await expectKept(2)
  })

  // So large a weight leaves the loss a number, but not its gradient.
  const steep = (more: () => void = () => undefined) =>
    atStep(2, () => {
      const weights = model.session.read('classifier.weight').fill(0)
      weights[0] = 1e37
      model.session.write('classifier.weight', weights)
      more()
    })

  it('stops in the step whose gradient is not finite, and names it', async () => {
    const error = await failure({ callbacks: [steep()], valEvery: 0 })
    expect(error.message).toMatch(/^the update is not finite in step 3 .*first in the gradient of \S+ \(/)
    expect(error.details['first']).toMatchObject({ part: 'gradient', tensor: expect.stringMatching(/^grad:/) })
    await expectKept(2)
  })

  it('leaves the parameters alone where the norm of the gradients says so in time', async () => {
    let before: Float32Array | undefined
    const remember = () => {
      before = model.session.read('classifier.weight')
    }
    const error = await failure({ callbacks: [steep(remember)], clipNorm: 1, valEvery: 0 })
    expect(error.message).toMatch(/^the norm of the gradients is \S+ in step 3 /)
    expect(error.details['first']).toMatchObject({ part: 'backward' })
    expect(model.session.read('classifier.weight')).toEqual(before)
    await expectKept(2)
  })
})

describe('evaluation', () => {
  it('names the running statistic', async () => {
    plant('blocks.2.1.bn2.running_var', Number.NaN)
    const error = await evaluateModel(model, { data: data.val!, batchSize: 4 }).catch((cause: EffnetError) => cause)
    expect(error).toMatchObject({
      code: 'EFF_NAN',
      message: expect.stringContaining('blocks.2.1.bn2.running_var'),
      details: { first: { part: 'weights', tensor: 'blocks.2.1.bn2.running_var' } },
    })
  })

  it('names nothing where all is well', async () => {
    const plan = await model.session.evalPlan({ batchSize: 1, imageSize: 32 })
    expect(await plan.findNonFinite(plan.packInput(new Uint8Array(32 * 32 * 3).fill(7), [0]))).toBeNull()
    plan.close()
  })

  it('in a validation of a run keeps the checkpoint before', async () => {
    const error = await failure({
      callbacks: [
        { name: 'plant', onValidationStart: (ctx) => (ctx.epoch === 1 ? plant('bn2.running_mean', Infinity) : undefined) },
      ],
    })
    expect(error.message).toMatch(/^validation loss is not finite in step \d+ .*bn2\.running_mean/)
    expect(error.message).toContain(last())
  })
})
