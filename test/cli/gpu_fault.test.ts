/** A GPU that faults in the middle of a run, on a driver without a GPU (native/cuda/fake). */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { describeWith, FAKE_DRIVER } from '../helpers/stand_in.js'
import { makeData } from '../train/helpers/data.js'
import { spawnEffnet } from './helpers/spawn.js'

const root = mkdtempSync(path.join(os.tmpdir(), 'effnet-fault-'))
afterAll(() => rmSync(root, { recursive: true, force: true }))

describeWith(FAKE_DRIVER, 'a GPU fault', () => {
  let data: string
  beforeAll(async () => {
    data = await makeData(path.join(root, 'data'), { train: 4, val: 1 })
  })
  const SIZES = ['--batch-size', '2', '--image-size', '32', '--log-every', '1']
  const begin = (name: string, fail: string, ...more: string[]) => {
    const model = ['--model', 'tf_efficientnet_b0', '--pretrained', '--device', 'cuda', '--seed', '3', ...SIZES, ...more]
    const env = { EFFNET_LIB_DIR: FAKE_DRIVER.folder, FAKE_CUDA_FAIL: fail, EFFNET_CUDA_SYNC: '' }
    return spawnEffnet(['train', '--data', data, '--out', path.join(root, name), ...model], env)
  }
  const file = (name: string, of: string): string => readFileSync(path.join(root, name, of), 'utf8')
  const status = (name: string) => JSON.parse(file(name, 'status.json')) as { state: string; step: number; exitCode: number }
  const losses = (name: string): [number, number][] =>
    file(name, 'steps.jsonl')
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as { step: number; loss: number })
      .map(({ step, loss }) => [step, loss])

  it('does not end the run: a fresh process goes on from the last checkpoint, or begins again where there is none', async () => {
    const runs = { sound: '', early: 'cuGraphLaunch:2:700', passing: 'cuGraphLaunch:3:719' }
    const said: Record<string, string> = {}
    for (const [name, fail] of Object.entries(runs)) {
      const { code, stderr } = await begin(name, fail, '--max-steps', '3', '--checkpoint-every', name === 'early' ? '9' : '1')
        .done
      expect(code).toBe(0)
      expect(status(name)).toMatchObject({ state: 'finished', step: 3 })
      said[name] = stderr
    }
    const fault = /^warning {2}EFF_GPU_FAULT {2}GPU fault: cuGraphLaunch failed: .*in a fresh process.*EFFNET_CUDA_SYNC=1/m
    expect(said['sound']).not.toMatch(fault)
    expect(said['passing']).toMatch(fault)
    expect(said['passing']).toMatch(/; the run goes on from .*last in a fresh/)
    expect(said['early']).toMatch(fault)
    expect(said['early']).toMatch(/; there is no checkpoint yet, so the run begins again in a fresh/)
    // Same options, same seed: nothing is lost of the run.
    expect(losses('sound').map(([step]) => step)).toEqual([1, 2, 3])
    expect(losses('early')).toEqual(losses('sound'))
    expect(losses('passing')).toEqual(losses('sound'))
    expect(file('early', 'resolved.yaml')).toBe(file('sound', 'resolved.yaml').replace('everySteps: 1', 'everySteps: 9'))
  }, 600_000)

  it('that comes again is named: at or before a kernel first, then the op and its kernel', async () => {
    const { code, stderr } = await begin('again', 'cuLaunchKernelEx:300:719', '--max-steps', '3').done
    expect(stderr).toMatch(/^warning {2}EFF_GPU_FAULT {2}at or before \w+: GPU fault: .* so the run begins again/m)
    expect(stderr).toMatch(/^EFF_GPU_FAULT {2}op \S+ \(\S+:cuda\): \w+: GPU fault: cuLaunchKernelEx failed: .*\(719\)/m)
    expect(stderr).toMatch(/Mend: the same op every time: a bug of its kernel/)
    expect(status('again')).toMatchObject({ state: 'failed', step: 0, exitCode: 70 })
    expect(code).toBe(70)
  }, 300_000)

  it('leaves a process that is told to end as any other is', async () => {
    const { child, line, done } = begin('ended', 'cuGraphLaunch:1:700', '--max-steps', '500', '--json')
    await line(/"event":"step","epoch":1,"step":1,/)
    child.kill('SIGTERM')
    expect(await done).toMatchObject({ code: 75, stderr: expect.stringMatching(/so the run begins again/) })
    expect(status('ended')).toMatchObject({ state: 'interrupted', exitCode: 75 })
  }, 300_000)
})
