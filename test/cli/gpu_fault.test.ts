/** A GPU that faults in the middle of a run, on a driver without a GPU (native/cuda/fake). */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, expect, it } from 'vitest'
import { describeWith, FAKE_DRIVER } from '../helpers/stand_in.js'
import { makeData } from '../train/helpers/data.js'
import { spawnEffnet } from './helpers/spawn.js'

const root = mkdtempSync(path.join(os.tmpdir(), 'effnet-fault-'))
afterAll(() => rmSync(root, { recursive: true, force: true }))

describeWith(FAKE_DRIVER, 'a GPU fault', () => {
  const train = async (name: string, fail: string, env: Record<string, string> = {}) => {
    const data = await makeData(path.join(root, `${name}-data`), { train: 4, val: 1 })
    const out = path.join(root, name)
    const options = ['--batch-size', '2', '--image-size', '32', '--max-steps', '3', '--checkpoint-every', '1', '--device', 'cuda']
    const argv = ['train', '--data', data, '--model', 'tf_efficientnet_b0', '--pretrained', '--out', out, ...options]
    const done = await spawnEffnet(argv, { EFFNET_LIB_DIR: FAKE_DRIVER.folder, FAKE_CUDA_FAIL: fail, ...env }).done
    return { ...done, status: JSON.parse(readFileSync(path.join(out, 'status.json'), 'utf8')) as { state: string; step: number } }
  }

  it('does not end the run: another process goes on from the last checkpoint', async () => {
    // The second process launches no graphs.
    const { code, stdout, stderr, status } = await train('passing', 'cuGraphLaunch:3:719')
    expect(stderr + stdout).toMatch(/goes on from .*last in another process.*EFFNET_CUDA_SYNC=1/)
    expect(status).toMatchObject({ state: 'finished', step: 3 })
    expect(code).toBe(0)
  }, 600_000)

  it('names the op and its kernel where every op is waited for, and is an error of its own', async () => {
    const { code, stderr, status } = await train('named', 'cuLaunchKernelEx:300:719', { EFFNET_CUDA_SYNC: '1' })
    expect(stderr).toMatch(/^EFF_GPU_FAULT {2}op \S+ \(\S+:cuda\): \w+: GPU fault: cuLaunchKernelEx failed: .*\(719\)/m)
    expect(stderr).toMatch(/Mend: the same op every time: a bug of its kernel/)
    expect(status).toMatchObject({ state: 'failed', step: 0 })
    expect(code).toBe(70)
  }, 300_000)

  it('without a checkpoint says how to go on', async () => {
    const { code, stderr } = await train('early', 'cuGraphLaunch:1:700')
    expect(stderr).toMatch(/^EFF_GPU_FAULT {2}GPU fault: cuGraphLaunch failed: .*\(700\).* cannot use the GPU any more$/m)
    expect(stderr).toMatch(/Mend: .*EFFNET_CUDA_SYNC=1/)
    expect(code).toBe(70)
  }, 300_000)
})
