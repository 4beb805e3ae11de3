import { afterEach, describe, expect, it, vi } from 'vitest'
import { tellWarnings } from '../../ts/cli/model_source.js'
import { cpuDecodedText } from '../../ts/cpu_decoded.js'
import { KernelTuning } from '../../ts/runtime/tuning.js'

describe('what a model has to say of its kernels', () => {
  afterEach(() => {
    vi.unstubAllEnvs()
    vi.restoreAllMocks()
  })
  const state = { machine: {}, choices: { linear: 'cublaslt/1' } } as never

  it('goes to the console of a command', async () => {
    vi.stubEnv('EFFNET_CUDA_TUNE', '0')
    const tuning = await KernelTuning.open('cuda:0')
    const told: string[] = []
    tellWarnings({ session: { tuning } }, { warn: (key) => void told.push(key) })
    tuning.resume(state)
    expect(told).toEqual(['resume-kernels'])
    tellWarnings({ session: { tuning: undefined } }, { warn: () => {} })
  })

  it('is not printed by the library', async () => {
    vi.stubEnv('EFFNET_CUDA_TUNE', '0')
    const emit = vi.spyOn(process, 'emitWarning')
    const tuning = await KernelTuning.open('cuda:0')
    tuning.resume(state)
    expect(emit).not.toHaveBeenCalled()
  })
})

it('one file is one', () => {
  expect(cpuDecodedText(1)).toBe('1 file was decoded on the CPU: nvJPEG does not take it')
  expect(cpuDecodedText(1200, '1 200')).toBe('1 200 files were decoded on the CPU: nvJPEG does not take them')
})
