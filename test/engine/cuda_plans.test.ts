/**
 * Which kernels a GPU gets for the networks, op by op: a change of a pass or of the choice of a kernel shows here. Bound on a driver
 * without a GPU (native/cuda/fake), nothing is run. `npx vitest run test/engine/cuda_plans.test.ts -u` writes the files anew.
 */
import { existsSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { createModel } from '../../ts/index.js'
import { packageRoot } from '../../ts/paths.js'
import type { DumpRow } from '../../ts/runtime/dump.js'

const driver = path.join(packageRoot(), 'build/fake_cuda')
const built = [path.join(driver, 'libcuda.so.1'), path.join(packageRoot(), 'build/Release/effnet_cuda.so')].every((file) =>
  existsSync(file),
)
// Read when the backend is used first.
process.env['EFFNET_LIB_DIR'] = driver

const table = (rows: readonly DumpRow[]): string =>
  rows.map(({ name, kernel, shapes, life }) => `${[name, kernel, shapes, life].join('\t').trimEnd()}\n`).join('')

describe.skipIf(!built)(`plans for GPUs${built ? '' : ' (no fake driver: npm run setup -- --test)'}`, () => {
  it.each([
    ['efficientnet_b0', 'bf16-mixed', 224],
    ['efficientnet_b0', 'fp32', 224],
    ['efficientnetv2_s', 'bf16-mixed', 128],
  ] as const)('%s %s', { timeout: 60_000 }, async (name, precision, imageSize) => {
    const model = await createModel(name, { device: 'cuda', precision, seed: 0 })
    const train = await model.session.trainPlan({
      batchSize: 4,
      imageSize,
      optimizer: { name: 'rmsprop_tf' },
      labelSmoothing: 0.1,
      dropRate: 0.2,
      dropPathRate: 0.2,
      ema: true,
      clip: true,
    })
    const files = path.join(packageRoot(), 'test/fixtures/plans')
    await expect(table(train.dump())).toMatchFileSnapshot(path.join(files, `cuda_${name}_${precision}_train.tsv`))
    train.close()
    for (const batchSize of [1, 4]) {
      const evaluation = await model.session.evalPlan({ batchSize, imageSize })
      const file = `cuda_${name}_${precision}_infer_${batchSize}.tsv`
      await expect(table(evaluation.dump())).toMatchFileSnapshot(path.join(files, file))
      evaluation.close()
    }
    await model.close()
  })
})
