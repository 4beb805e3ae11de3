/** A library of NVIDIA's that is there and does not start, as where the GPU's memory is full (native/cuda/fake). */
import { mkdtempSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { expect, it } from 'vitest'
import { packageRoot } from '../../ts/paths.js'
import { describeWith, fakeLibraries } from '../helpers/stand_in.js'
import { photo } from './helpers/folders.js'
import { spawnEffnet } from './helpers/spawn.js'

const LIBRARIES = fakeLibraries('libcublasLt.so.13', 'libnvjpeg.so.13')

describeWith(LIBRARIES, 'a library that does not start', () => {
  const predict = (env: Record<string, string>) =>
    spawnEffnet(['predict', '--device', 'cuda', '--image-size', '32', '--deterministic', photo()], {
      EFFNET_LIB_DIR: LIBRARIES.folder,
      ...env,
    }).done

  it.each([
    ['1', 69, 'EFF_BACKEND_MISSING', /Mend: install that library's package again.*EFFNET_CUDA_PROVIDER=own/],
    ['3', 71, 'EFF_OOM', /Mend: free memory of the GPU.*EFFNET_CUDA_PROVIDER=own/],
  ])('is no reason to take other kernels silently: status %s', async (status, exitCode, name, mend) => {
    const { code, stderr } = await predict({ FAKE_CUBLASLT_FAIL: `cublasLtCreate:1:${status}` })
    expect(stderr).toMatch(/libcublasLt\.so\.13 does not start: cublasLtCreate failed with status/)
    expect(stderr).toMatch(new RegExp(`^${name} {2}`, 'm'))
    expect(stderr).toMatch(mend)
    expect(code).toBe(exitCode)
  })

  it('is named with its mend where it is to decode images', async () => {
    const data = ['--data', path.join(packageRoot(), 'models/demo'), '--data-backend', 'gpu', '--deterministic']
    const env = { EFFNET_LIB_DIR: LIBRARIES.folder, FAKE_NVJPEG_FAIL: 'nvjpegCreateExV2:1:1' }
    const sizes = [
      '--model',
      'efficientnet_b0',
      '--device',
      'cuda',
      '--image-size',
      '32',
      '--batch-size',
      '2',
      '--max-steps',
      '1',
    ]
    const out = mkdtempSync(path.join(os.tmpdir(), 'effnet-nvjpeg-'))
    const { code, stderr } = await spawnEffnet(['train', ...data, '--out', path.join(out, 'run'), ...sizes], env).done
    rmSync(out, { recursive: true })
    expect(stderr).toMatch(/libnvjpeg\.so\.13 does not start: nvjpegCreateExV2 failed with status 1$/m)
    expect(stderr).toMatch(/Mend: install nvJPEG's package again; or --data-backend cpu/)
    expect(code).toBe(69)
  })

  it('is not asked where its kernels are not wanted', async () => {
    const { code } = await predict({ FAKE_CUBLASLT_FAIL: 'cublasLtCreate:1:1', EFFNET_CUDA_PROVIDER: 'own' })
    expect(code).toBe(0)
  })
})
