/**
 * Which kernels a GPU gets for the networks, op by op: a change of a pass or of the choice of a kernel shows here. Bound on a driver
 * without a GPU (native/cuda/fake), nothing is run. `npx vitest run test/engine/cuda_plans.test.ts -u` writes the files anew.
 */
import path from 'node:path'
import { expect, it, vi } from 'vitest'
import { TRAINING } from '../../scripts/lib/kernel_launches.mjs'
import { ARENA, binding } from '../../ts/binding.js'
import { createModel } from '../../ts/index.js'
import { packageRoot } from '../../ts/paths.js'
import type { DumpRow } from '../../ts/runtime/dump.js'
import { packScalars } from '../../ts/runtime/scalars.js'
import { describeWith, FAKE_DRIVER } from '../helpers/stand_in.js'

// Read when the backend is used first.
process.env['EFFNET_LIB_DIR'] = FAKE_DRIVER.folder

const table = (rows: readonly DumpRow[]): string =>
  rows.map(({ name, kernel, shapes, life }) => `${[name, kernel, shapes, life].join('\t').trimEnd()}\n`).join('')

const FILES = path.join(packageRoot(), 'test/fixtures/plans')

describeWith(FAKE_DRIVER, 'plans for GPUs', () => {
  it.each([
    ['efficientnet_b0', 'bf16-mixed', 224],
    ['efficientnet_b0', 'fp32', 224],
    ['efficientnet_b0', 'tf32', 224],
    ['efficientnet_b0', 'fp16-mixed', 224],
    ['efficientnetv2_s', 'bf16-mixed', 128],
  ] as const)('%s %s', { timeout: 60_000 }, async (name, precision, imageSize) => {
    const model = await createModel(name, { device: 'cuda', precision, seed: 0 })
    const train = await model.session.trainPlan({
      ...TRAINING,
      batchSize: 4,
      imageSize,
    })
    await expect(table(train.dump())).toMatchFileSnapshot(path.join(FILES, `cuda_${name}_${precision}_train.tsv`))
    train.close()
    for (const batchSize of [1, 4]) {
      const evaluation = await model.session.evalPlan({ batchSize, imageSize })
      const file = `cuda_${name}_${precision}_infer_${batchSize}.tsv`
      await expect(table(evaluation.dump())).toMatchFileSnapshot(path.join(FILES, file))
      evaluation.close()
    }
    await model.close()
  })

  // The norm finds gradients that are not finite, whoever clips.
  it.each([true, false])('have the norm of the gradients, and clip where they are to: %s', { timeout: 60_000 }, async (clip) => {
    const model = await createModel('efficientnet_b0', { device: 'cuda', seed: 0 })
    const plan = await model.session.trainPlan({ ...TRAINING, clip, batchSize: 2, imageSize: 32 })
    expect(plan.dump().filter(({ op }) => op === 'grad_norm')).toHaveLength(1)
    const step = vi.spyOn(binding(), 'step').mockResolvedValue(new Uint8Array(plan.arenaBytes[ARENA.output]!))
    const result = await plan.step({ bytes: new Uint8Array(plan.inputLayout.bytes) }, { lr: 1, clip_norm: 5 })
    expect(result.gradNorm).toBe(0)
    expect(step.mock.calls[0]![2]).toEqual(packScalars({ lr: 1, clip_norm: clip ? 5 : 0 }))
    step.mockRestore()
    await model.close()
  })

  // Larger batches get other forms: tiles, blocks of several tiles, splits of reductions.
  it.each([
    ['efficientnet_b0', 224],
    ['efficientnet_b4', 380],
    ['efficientnetv2_s', 300],
  ] as const)('%s in batches of 256', { timeout: 60_000 }, async (name, imageSize) => {
    process.env['FAKE_CUDA_MEMORY'] = String(2 ** 40)
    try {
      const model = await createModel(name, { device: 'cuda', precision: 'bf16-mixed', seed: 0 })
      const train = await model.session.trainPlan({ ...TRAINING, batchSize: 256, imageSize })
      await expect(table(train.dump())).toMatchFileSnapshot(path.join(FILES, `cuda_${name}_bf16-mixed_train_256.tsv`))
      train.close()
      const evaluation = await model.session.evalPlan({ batchSize: 256, imageSize })
      await expect(table(evaluation.dump())).toMatchFileSnapshot(path.join(FILES, `cuda_${name}_bf16-mixed_infer_256.tsv`))
      evaluation.close()
      await model.close()
    } finally {
      delete process.env['FAKE_CUDA_MEMORY']
    }
  })
})
