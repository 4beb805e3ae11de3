/** Ten optimizer steps against losses that PyTorch recorded (scripts/fixtures/make_training_losses.py). */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { afterEach, describe, expect, it } from 'vitest'
import { getModelConfig } from '../../ts/nn/index.js'
import type { Session } from '../../ts/runtime/session.js'
import { readWeightsFile } from '../../ts/train/tensor_files.js'
import { goldenSession, hashLabels, hashPixels } from '../engine/harness.js'

interface Run {
  arch: string
  start: 'hash' | 'pretrained'
  optimizer: 'sgd' | 'rmsprop' | 'adamw'
  lr: number
  losses: number[]
}
const fixture = JSON.parse(readFileSync(new URL('../fixtures/parity/training_losses.json', import.meta.url), 'utf8')) as {
  batch: number
  size: number
  label_smoothing: number
  runs: Run[]
}

let session: Session | undefined
afterEach(() => session?.close())

async function losses(run: Run, prepare: (s: Session) => Promise<void>): Promise<number[]> {
  const config = getModelConfig(run.arch)
  session = await goldenSession(config)
  await prepare(session)
  const { batch, size } = fixture
  const plan = await session.trainPlan({
    batchSize: batch,
    imageSize: size,
    optimizer: { name: run.optimizer },
    labelSmoothing: fixture.label_smoothing,
    dropRate: 0,
    dropPathRate: 0,
    clip: false,
    ema: false,
  })
  const hyper =
    run.optimizer === 'adamw'
      ? { momentum: 0.9, alpha: 0.999, eps: 1e-8, weight_decay: 0.01 }
      : { momentum: 0.9, alpha: 0.9, eps: 1e-3, weight_decay: 0 }
  const result: number[] = []
  for (let step = 0; step < run.losses.length; step++) {
    const input = plan.packInput(hashPixels(200000 + step, batch * size * size * 3), hashLabels(300000 + step, batch, 1000))
    const { loss } = await plan.step(input, { ...hyper, lr: run.lr, step, optimizer_step: step + 1 })
    result.push(loss)
  }
  return result
}

const check = (ours: number[], theirs: number[]): void => {
  ours.forEach((loss, step) => {
    expect(Math.abs(loss / theirs[step]! - 1), `step ${step}: ${loss}, PyTorch ${theirs[step]}`).toBeLessThan(1e-4)
  })
}

const data = process.env['EFFNET_TEST_DATA']
const named = (start: Run['start']) =>
  fixture.runs.filter((r) => r.start === start).map((r) => [`${r.arch} ${r.optimizer} lr ${r.lr}`, r] as const)

describe('losses of PyTorch', () => {
  it.each(named('hash'))('%s', async (_, run) => {
    check(await losses(run, async () => undefined), run.losses)
  })

  it.skipIf(!data).each(named('pretrained'))('from pretrained weights (EFFNET_TEST_DATA): %s', async (_, run) => {
    const file = path.join(data!, 'weights/tf_efficientnet_b0.tfhub-v1.safetensors')
    check(await losses(run, async (s) => void (await readWeightsFile(s, file, {}))), run.losses)
  })
})
