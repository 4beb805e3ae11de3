#!/usr/bin/env node
/**
 * A training run small enough to be killed thousands of times: a network of two blocks over the folder of images `data`. A
 * child of scripts/reliability.mjs, whose faults come by EFFNET_FAULT.
 *
 *   node scripts/lib/tiny_run.mjs DATA OUT OPTIONS_JSON   continues OUT where there is a checkpoint
 *
 * Prints JSON lines as `effnet train --json` does: start, then result or error; ends with its exit code.
 */
import { describeError, errorObject } from '../../dist/cli/errors_ui.js'
import { imageFolder } from '../../dist/data/image_folder.js'
import { Model } from '../../dist/model.js'
import { getModelConfig } from '../../dist/nn/index.js'
import { initParams } from '../../dist/runtime/init.js'
import { Session } from '../../dist/runtime/session.js'
import { logWriteCount } from '../../dist/train/fault.js'
import { Trainer } from '../../dist/train/trainer.js'

const [dir, outDir, options] = process.argv.slice(2)
const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`)

const stage = { op: 'mbconv', kernel: 3, stride: 1, expand: 1, in: 8, out: 8, repeats: 1, se: true }
const config = {
  ...getModelConfig('efficientnet_b0', { numClasses: 3, imageSize: 32 }),
  stem: 8,
  stages: [stage, { ...stage, kernel: 5, stride: 2, expand: 4, out: 16 }],
  head: 32,
}

async function tinyModel() {
  const session = await Session.create({ config, precision: 'fp32', threads: 1 })
  await initParams(config, 1, (param, values) => session.write(param.name, values))
  return new Model(session, config, { kind: 'random', matched: 0, total: session.slots.length }, undefined)
}

try {
  const data = await imageFolder(dir)
  const model = await tinyModel()
  const trainer = new Trainer({
    model,
    outDir,
    recipe: 'finetune',
    imageSize: 32,
    ema: 0.9,
    lr: 2e-3,
    seed: 7,
    logEvery: 1,
    workers: 1,
    ...JSON.parse(options),
  })
  const events = trainer.events()
  const reading = (async () => {
    for await (const event of events) {
      if (event.type === 'start') say({ event: 'start', step: event.resumed?.step ?? 0 })
      if (event.type === 'warning') say({ event: 'warning', code: event.code, message: event.message })
    }
  })()
  const result = await trainer.fit({ ...data, resume: 'auto' })
  await reading
  say({ result: { status: result.status, step: result.step, best: result.best ?? null }, logWrites: logWriteCount() })
  process.exitCode = result.status === 'finished' ? 0 : 75
} catch (thrown) {
  const described = describeError(thrown)
  process.stderr.write(`${described.code}  ${described.message}\n`)
  say({ error: errorObject(described) })
  process.exitCode = described.exitCode
}
