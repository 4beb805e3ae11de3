/** A GPU that does not answer any more, on a driver without one (native/cuda/fake): a run ends all the same when it is told to. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, expect, it, vi } from 'vitest'
import { describeWith, FAKE_DRIVER } from '../helpers/stand_in.js'
import { makeData } from '../train/helpers/data.js'
import { type Spawned, spawnEffnet } from './helpers/spawn.js'

const root = mkdtempSync(path.join(os.tmpdir(), 'effnet-hang-'))
afterAll(() => rmSync(root, { recursive: true, force: true }))

describeWith(FAKE_DRIVER, 'a GPU that hangs', () => {
  let data: string
  const runs: Spawned[] = []
  beforeAll(async () => {
    data = await makeData(path.join(root, 'data'), { train: 4, val: 1 })
  })
  afterAll(() => {
    for (const { child } of runs) child.kill('SIGKILL')
  })

  const SIZES = ['--model', 'tf_efficientnet_b0', '--seed', '3', '--batch-size', '2', '--image-size', '32']
  const words = (name: string) => ['train', '--data', data, '--out', path.join(root, name), ...SIZES]

  /** A run, once its first step does not come to an end. */
  async function hanging(name: string, ...more: string[]) {
    const at = (file: string) => path.join(root, name, file)
    const log = path.join(root, `${name}.log`)
    const env = { EFFNET_LIB_DIR: FAKE_DRIVER.folder, FAKE_CUDA_FAIL: 'cuGraphLaunch:1:-1', FAKE_CUDA_LOG: log }
    const run = spawnEffnet([...words(name), '--device', 'cuda', ...more], env)
    runs.push(run)
    const hangs = () => existsSync(log) && readFileSync(log, 'utf8').includes('does not come back')
    const early = run.done.then(({ stderr }) => Promise.reject(new Error(`it ended: ${stderr}`)))
    await Promise.race([early, vi.waitFor(() => expect(hangs()).toBe(true), { timeout: 280_000, interval: 100 })])
    early.catch(() => undefined)
    return { ...run, status: () => JSON.parse(readFileSync(at('status.json'), 'utf8')) as object }
  }

  it('lets the process end after the grace of SIGTERM', async () => {
    const run = await hanging('terminated', '--grace', '1')
    run.child.kill('SIGTERM')
    const message = 'no checkpoint could be written within 1 s; nothing was saved before'
    expect(await run.done).toMatchObject({ code: 143, signal: null, stderr: expect.stringContaining(message) })
    expect(run.status()).toMatchObject({ state: 'interrupted', step: 0, exitCode: 143, message })
  }, 300_000)

  it('lets it end at the second Ctrl-C, and keeps the checkpoint before', async () => {
    expect((await spawnEffnet([...words('interrupted'), '--max-steps', '1']).done).code).toBe(0)
    const run = await hanging('interrupted', '--resume', '--max-steps', '3')
    run.child.kill('SIGINT')
    await run.line(/once more stops at once/)
    run.child.kill('SIGINT')
    const message = 'second interrupt: stopped without a new checkpoint; what was saved before is kept'
    expect(await run.done).toMatchObject({ code: 130, signal: null, stderr: expect.stringContaining(message) })
    expect(run.status()).toMatchObject({ state: 'interrupted', step: 1, exitCode: 130, message })
    expect(existsSync(path.join(root, 'interrupted/checkpoints/last/manifest.json'))).toBe(true)
  }, 300_000)
})
