import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, it, vi } from 'vitest'
import { type Check, checkCuda, checkGpu, checkLibrary, checkVisible } from '../../ts/cli/doctor.js'
import { checkVariables } from '../../ts/cli/variables.js'
import { describeWith, FAKE_DRIVER } from '../helpers/stand_in.js'
import { spawnEffnet } from './helpers/spawn.js'

const library = {
  name: 'cuDNN',
  path: '',
  version: '',
  problem: '/opt/libcudnn.so.9 is 9.10.2, 9.19.0 or later is needed',
  without: 'dense convolutions use own kernels',
  mend: 'pip install nvidia-cudnn-cu13',
}

describe('libraries in the doctor', () => {
  it('shows version and path', () => {
    const found = { ...library, path: '/opt/libcudnn.so.9', version: '9.19.0', problem: '', without: '', mend: '' }
    expect(checkLibrary(found)).toEqual({ name: 'cuDNN', status: 'ok', value: '9.19.0, /opt/libcudnn.so.9' })
  })

  it('says what a missing one means, and is no failure', () => {
    expect(checkLibrary(library)).toEqual({
      name: 'cuDNN',
      status: 'warn',
      value: '/opt/libcudnn.so.9 is 9.10.2, 9.19.0 or later is needed: dense convolutions use own kernels',
      mend: 'pip install nvidia-cudnn-cu13',
    })
  })
})

it('a backend that cannot be asked is no failure of the addon', async () => {
  const [check, ...more] = await checkCuda(() => Promise.reject(new Error('driver is broken')))
  expect(more).toEqual([])
  expect(check).toMatchObject({
    name: 'cuda',
    status: 'warn',
    value: expect.stringContaining('driver is broken (for --device cuda only)'),
  })
})

describe('GPUs in the doctor', () => {
  const gpu = { name: 'NVIDIA A100', computeCapability: 8, memoryBytes: 80 * 2 ** 30, problem: '' }

  it('tells what it is, or why it cannot be used and what to do', () => {
    expect(checkGpu(gpu, 0)).toMatchObject({
      name: 'cuda:0',
      status: 'ok',
      value: expect.stringMatching(/A100.*8\.0, 80\.0 GiB/),
    })
    const problem = 'this build has no kernels for NVIDIA A100 (compute capability 8.0)'
    expect(checkGpu({ ...gpu, problem }, 1)).toMatchObject({
      name: 'cuda:1',
      status: 'warn',
      value: `${problem} (for --device cuda only)`,
      mend: expect.stringContaining('npm run setup -- --cuda --cuda-architectures 80'),
    })
  })

  it('tells which of them CUDA_VISIBLE_DEVICES leaves, and how they are counted', () => {
    expect(checkVisible(undefined, 2)).toEqual([])
    expect(checkVisible('3,1', 2)[0]).toMatchObject({ status: 'ok', value: expect.stringContaining('"3,1"') })
    expect(checkVisible('3,1', 2)[0]!.value).toContain('cuda:0 to cuda:1')
    expect(checkVisible('', 0)[0]).toMatchObject({ status: 'warn', mend: expect.stringContaining('nvidia-smi -L') })
  })
})

describe('variables in the doctor', () => {
  it('are listed, and told where a command would refuse them', () => {
    const env = {
      EFFNET_PRECISION: 'bf16',
      EFFNET_NUM_THREADS: 'all',
      EFFNET_DEVICE: 'gpu',
      EFFNET_MEMORY_LIMIT: '0.0000000001',
      EFFNET_SEED: '7',
      EFFNET_LIB_DIR: '/no/such/folder',
      EFFNET_CACHE_DIR: '/proc/version',
      EFFNET_CUDA_PROVDER: 'own',
      EFFNET_DETERMINISTIC: '',
      EFFNET_OF_OTHERS_ENTIRELY: 'x',
      EFFNET_FAULT: 'log:1:eio',
      EFFNET_TEST_DATA: '/data',
      PATH: '/bin',
    }
    const checks = checkVariables(env)
    expect(checks[0]).toEqual({ name: 'variables', status: 'ok', value: 'EFFNET_PRECISION=bf16 EFFNET_SEED=7' })
    const bad = Object.fromEntries(checks.slice(1).map(({ name, status, value, mend }) => [name, [status, value, mend]]))
    expect(bad).toEqual({
      EFFNET_NUM_THREADS: [
        'warn',
        expect.stringContaining("'all'"),
        expect.stringMatching(/EFFNET_NUM_THREADS=N .*whole number/),
      ],
      EFFNET_DEVICE: ['warn', expect.stringContaining('"gpu"'), expect.stringContaining('cuda')],
      EFFNET_MEMORY_LIMIT: [
        'warn',
        expect.stringMatching(
          /^EFFNET_MEMORY_LIMIT=0\.0000000001: of [\d.]+ GiB that is \d+ bytes?, and 1048576 \(1\.0 MiB\) are the least/,
        ),
        expect.stringContaining('8GiB'),
      ],
      EFFNET_LIB_DIR: ['warn', 'EFFNET_LIB_DIR=/no/such/folder: there is no such folder', expect.stringContaining('unset')],
      EFFNET_CACHE_DIR: ['warn', expect.stringContaining('/proc/version is a file'), expect.stringContaining('may write')],
      EFFNET_CUDA_PROVDER: ['warn', 'nothing reads it', 'did you mean EFFNET_CUDA_PROVIDER'],
      EFFNET_OF_OTHERS_ENTIRELY: ['warn', 'nothing reads it', expect.stringMatching(/^unset it; docs\/cli\.md/)],
      EFFNET_FAULT: ['warn', expect.stringContaining('makes this process fail'), 'unset it'],
    })
  })

  it('are known that the scripts for a GPU read', () => {
    const files = ['scripts/gpu-check.sh', ...readdirSync('scripts/gpu').map((name) => `scripts/gpu/${name}`)]
    const texts = files.filter((file) => statSync(file).isFile()).map((file) => readFileSync(file, 'utf8'))
    const names = new Set(texts.flatMap((text) => text.match(/\bEFFNET_[A-Z_]+\b/g) ?? []))
    expect(names.size).toBeGreaterThan(10)
    const checks = checkVariables(Object.fromEntries([...names].map((name) => [name, '1'])))
    expect(checks.filter(({ value }) => value === 'nothing reads it')).toEqual([])
  })

  it.each(['EFFNET_CUDA_SYNC', 'EFFNET_CUDA_PROVIDER', 'EFFNET_CUDA_TUNE'])('%s, too', (name) => {
    vi.stubEnv(name, 'maybe')
    expect(checkVariables(process.env)).toContainEqual(
      expect.objectContaining({ name, status: 'warn', value: expect.stringContaining(`${name}=maybe: there are`) }),
    )
    vi.unstubAllEnvs()
  })
})

const nowhere = mkdtempSync(path.join(os.tmpdir(), 'effnet-doctor-'))
afterAll(() => rmSync(nowhere, { recursive: true, force: true }))

describeWith(FAKE_DRIVER, 'effnet doctor', () => {
  const checks = async (env: Record<string, string>): Promise<Map<string, Check>> => {
    const { code, stdout } = await spawnEffnet(['doctor', '--json'], { EFFNET_LIB_DIR: FAKE_DRIVER.folder, ...env }).done
    expect(code).toBe(0)
    const [line] = stdout.trim().split('\n')
    return new Map((JSON.parse(line!) as { checks: Check[] }).checks.map((check) => [check.name, check]))
  }

  it('shows driver, CUDA, device, compute capability and every library', async () => {
    const found = await checks({ FAKE_CUDA_DEVICES: '2', CUDA_VISIBLE_DEVICES: '1,0' })
    expect(found.get('cuda driver')!.value).toBe(`580.65.06, CUDA 13.0, ${FAKE_DRIVER.folder}/libcuda.so.1`)
    expect(found.get('cuda backend')!.value).toMatch(/effnet_cuda\.so, kernels for sm_/)
    expect(found.get('cuda:1')).toMatchObject({
      status: 'ok',
      value: expect.stringMatching(/^Fake H200, compute capability 9\.0/),
    })
    expect(found.get('CUDA_VISIBLE_DEVICES')!.value).toContain('cuda:0 to cuda:1')
    for (const name of ['cuDNN', 'cuBLASLt', 'nvJPEG']) expect(found.get(name), name).toBeDefined()
  })

  it.each([
    ['an old driver', { FAKE_CUDA_VERSION: '12080' }, /CUDA 13\.0 is needed\. Install driver 580/],
    ['no GPU', { FAKE_CUDA_DEVICES: '0' }, /no GPU that this process may use/],
    ['an old GPU', { FAKE_CUDA_CAPABILITY: '75' }, /compute capability 7\.5; 8\.0 \(Ampere\)/],
    ['no such GPU', { CUDA_VISIBLE_DEVICES: '3', EFFNET_DEVICE: 'cuda:3' }, /no GPU 3: .*CUDA_VISIBLE_DEVICES is 3/],
    ['no driver', { EFFNET_LIB_DIR: nowhere }, /no NVIDIA driver/],
  ])('whoever asks for a GPU is refused where there is %s, with exit code 69', async (_, env, message) => {
    const given = { EFFNET_LIB_DIR: FAKE_DRIVER.folder, EFFNET_DEVICE: 'cuda', ...(env as Record<string, string>) }
    const { code, stderr } = await spawnEffnet(['bench', '--steps', '1'], given).done
    expect(stderr).toMatch(/^EFF_BACKEND_MISSING {2}/m)
    expect(stderr).toMatch(message)
    expect(stderr).toMatch(/Mend: /)
    expect(code).toBe(69)
  })

  it.each([
    ['an old driver', { FAKE_CUDA_VERSION: '12080' }, 'cuda', /supports CUDA 12\.8; CUDA 13\.0 is needed/, /driver 580 or later/],
    [
      'no GPU',
      { FAKE_CUDA_DEVICES: '0' },
      'cuda',
      /no GPU that this process may use/,
      /CUDA_VISIBLE_DEVICES; in a container.*--gpus all/,
    ],
    ['hidden GPUs', { FAKE_CUDA_DEVICES: '0', CUDA_VISIBLE_DEVICES: '-1' }, 'CUDA_VISIBLE_DEVICES', /"-1" hides/, /unset/],
    ['an old GPU', { FAKE_CUDA_CAPABILITY: '75' }, 'cuda:0', /compute capability 7\.5; 8\.0 \(Ampere\)/, /A100/],
    ['no driver', { EFFNET_LIB_DIR: nowhere }, 'cuda', /no NVIDIA driver: .*wsl\/lib\/libcuda\.so\.1/, /580 or later/],
  ])('tells the mend of %s', async (_, env, name, value, mend) => {
    const check = (await checks(env as Record<string, string>)).get(name)
    expect(check).toMatchObject({ status: 'warn', value: expect.stringMatching(value), mend: expect.stringMatching(mend) })
  })

  it('tells a driver that a copy was broken off of', async () => {
    const folder = path.join(nowhere, 'cut')
    mkdirSync(folder)
    writeFileSync(
      path.join(folder, 'libcuda.so.1'),
      readFileSync(path.join(FAKE_DRIVER.folder, 'libcuda.so.1')).subarray(0, 100_000),
    )
    expect((await checks({ EFFNET_LIB_DIR: folder })).get('cuda')).toMatchObject({
      status: 'warn',
      value: expect.stringMatching(/cut\/libcuda\.so\.1: cut short, 100000 of at least \d+ bytes/),
      mend: expect.stringMatching(/^EFFNET_LIB_DIR names a folder whose libcuda\.so\.1 does not load: unset it/),
    })
  })
})
