import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createModel, type Model, type PredictionError } from '../../ts/index.js'

const dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-save-'))
let model: Model
beforeAll(async () => {
  model = await createModel('efficientnet_b0', { numClasses: 2, threads: 1, imageSize: 32 })
})
afterAll(async () => {
  await model.close()
  rmSync(dir, { recursive: true, force: true })
})

describe('save', () => {
  it('leaves a folder alone that holds something else', async () => {
    const folder = path.join(dir, 'documents')
    mkdirSync(folder)
    writeFileSync(path.join(folder, 'thesis.txt'), 'years')
    await expect(model.save(folder)).rejects.toMatchObject({ code: 'EFF_RUN_EXISTS' })
    expect(existsSync(path.join(folder, 'thesis.txt'))).toBe(true)
    await expect(model.save('')).rejects.toMatchObject({ code: 'EFF_INVALID_ARGUMENT' })
    await expect(model.save(path.join(folder, 'thesis.txt'))).rejects.toMatchObject({ code: 'EFF_RUN_EXISTS' })
  })

  it('replaces an earlier model and fills an empty folder', async () => {
    const folder = path.join(dir, 'model')
    mkdirSync(folder)
    await model.save(folder)
    await model.save(folder)
    expect(existsSync(path.join(folder, 'model.safetensors'))).toBe(true)
  })
})

it('weights that are not finite are an error, not an answer', async () => {
  const broken = await createModel('efficientnet_b0', { numClasses: 2, threads: 1, imageSize: 32 })
  broken.session.write('classifier.bias', Float32Array.of(Number.NaN, 0))
  const [result] = await broken.predict([{ data: new Uint8Array(32 * 32 * 3), width: 32, height: 32 }])
  expect((result as PredictionError).error.code).toBe('EFF_NAN')
  await broken.close()
})
