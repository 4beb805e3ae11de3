/**
 * The one-instruction tanh of a GPU is off by up to 2^-11 of its value (native/cuda/device/device.h). What gpu-check compares on a GPU
 * is compared here by emulated kernels that are that far off (native/cuda/device/emulation.h), so that no limit of it is narrower than
 * the device's own error.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { expect, it } from 'vitest'
import { packageRoot } from '../../ts/paths.js'
import { checkLayers } from '../helpers/layer_check.js'
import { sample, shapeLines } from '../helpers/layer_shapes.js'
import { describeWith, FAKE_DRIVER } from '../helpers/stand_in.js'

// Read when the backend is used first.
process.env['EFFNET_LIB_DIR'] = FAKE_DRIVER.folder
process.env['EMULATED_TANH'] = 'gpu'

const PROGRAM = path.join(packageRoot(), 'build/gpu_shapes_test')
const missing = FAKE_DRIVER.missing ?? (existsSync(PROGRAM) ? undefined : PROGRAM)

describeWith({ ...FAKE_DRIVER, missing }, "with a GPU's tanh", () => {
  it.each([
    ['efficientnet_b0', 'bf16', 40],
    ['efficientnet_b0', 'f16', 40],
  ] as const)('%s %s: every layer, with the values of a step', { timeout: 180_000 }, async (model, precision, imageSize) => {
    const { wrong } = await checkLayers({ model, precision, imageSize, batchSize: 2, device: 'cuda' })
    expect(wrong).toEqual([])
  })

  const shapes = (tanh: 'gpu' | 'exact', precision: string) => {
    const folder = mkdtempSync(path.join(os.tmpdir(), 'effnet-shapes-'))
    try {
      const file = path.join(folder, 'shapes.txt')
      writeFileSync(file, `${sample(shapeLines(32), 2).join('\n')}\n`)
      const env = { ...process.env, EMULATED_TANH: tanh, EFFNET_CUDA_PROVIDER: 'own' }
      return spawnSync(PROGRAM, [file, precision], { encoding: 'utf8', env })
    } finally {
      rmSync(folder, { recursive: true })
    }
  }
  const used = (said: string, op: string): number => Number(new RegExp(`^${op} (\\d+) % of its limit$`, 'm').exec(said)?.[1])

  it.each(['bf16', 'f16'])('%s: every op beside its reference, which tells the two apart', { timeout: 300_000 }, (precision) => {
    const exact = shapes('exact', precision)
    const perturbed = shapes('gpu', precision)
    expect(perturbed).toMatchObject({ status: 0, stdout: expect.stringMatching(/: \d+ shapes, 0 off\n$/) })
    expect(used(perturbed.stdout, 'bn_act_pool')).toBeGreaterThan(1.2 * used(exact.stdout, 'bn_act_pool'))
  })
})
