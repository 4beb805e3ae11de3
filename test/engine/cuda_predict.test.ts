/** Predictions on a GPU, by the log of a driver without one (native/cuda/fake): what hundreds of them take, and two models side by side. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, expect, it } from 'vitest'
import { binding } from '../../ts/binding.js'
import { Model } from '../../ts/model.js'
import { initParams } from '../../ts/runtime/init.js'
import { Session } from '../../ts/runtime/session.js'
import { BLOCK, smallConfig } from '../helpers/small_config.js'
import { describeWith, FAKE_DRIVER } from '../helpers/stand_in.js'

const scratch = mkdtempSync(path.join(os.tmpdir(), 'effnet-cuda-predict-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))
const log = path.join(scratch, 'log')
// Read when the driver is used first.
process.env['EFFNET_LIB_DIR'] = FAKE_DRIVER.folder
process.env['FAKE_CUDA_LOG'] = log

const config = smallConfig('efficientnet_b0', [BLOCK], { imageSize: 32 })

async function small(seed: number): Promise<Model> {
  const session = await Session.create({ config, precision: 'fp32', device: 'cuda' })
  await initParams(config, seed, (param, values) => session.write(param.name, values))
  // It begins as zeros, with which nothing tells the classes apart.
  session.write(
    'classifier.weight',
    session.read('classifier.weight').map((_, i) => Math.sin(i + seed)),
  )
  return new Model(session, config, { kind: 'random', matched: 0, total: session.slots.length }, undefined)
}

const photo = (seed: number) => ({
  data: Uint8Array.from({ length: 32 * 32 * 3 }, (_, i) => Math.imul(i + seed, 2654435761) >>> 24),
  width: 32,
  height: 32,
})
const answer = async (model: Model, seed: number) => (await model.predict(photo(seed), { imageSize: 32 }))[0]!.topk

describeWith(FAKE_DRIVER, 'predictions on a GPU', () => {
  it('take nothing from the driver or the host once the first is made, and give all back at the end', async () => {
    const made = () =>
      readFileSync(log, 'utf8').match(/^(cuMemAlloc|cuMemHostAlloc|cu\w+Create\w*|cuGraphInstantiate\w*|cuLibraryLoad\w*)$/gm)
        ?.length ?? 0
    const before = binding().memoryUsage()
    const model = await small(1)
    const first = await answer(model, 1)
    await answer(model, 2)
    const [objects, native] = [made(), binding().memoryUsage()]
    for (let i = 0; i < 300; i++) await answer(model, i)
    expect(made()).toBe(objects)
    expect(binding().memoryUsage()).toMatchObject({ arenas: native.arenas, kernels: native.kernels })
    expect(await answer(model, 1)).toEqual(first)
    await model.close()
    expect(binding().memoryUsage()).toMatchObject({ arenas: before.arenas, kernels: before.kernels })
    const freed = readFileSync(log, 'utf8')
    const count = (name: string): number => freed.match(new RegExp(`^${name}$`, 'gm'))?.length ?? 0
    for (const [take, give] of [
      ['cuMemAlloc', 'cuMemFree'],
      ['cuMemHostAlloc', 'cuMemFreeHost'],
      ['cuEventCreate', 'cuEventDestroy'],
      ['cuStreamCreateWithPriority', 'cuStreamDestroy'],
      ['cuGraphInstantiateWithFlags', 'cuGraphExecDestroy'],
    ] as const)
      expect(count(give), give).toBe(count(take))
  }, 120_000)

  it('of two models of one process are those of each alone, side by side too', async () => {
    const alone = []
    for (const seed of [1, 2]) {
      const model = await small(seed)
      alone.push(await answer(model, 7))
      await model.close()
    }
    const models = await Promise.all([1, 2].map(small))
    expect(alone[0]).not.toEqual(alone[1])
    for (let round = 0; round < 3; round++) expect(await Promise.all(models.map((model) => answer(model, 7)))).toEqual(alone)
    await models[0]!.close()
    expect(await answer(models[1]!, 7)).toEqual(alone[1])
    await models[1]!.close()
  }, 120_000)
})
