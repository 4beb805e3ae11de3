import { afterEach, describe, expect, it, vi } from 'vitest'
import { tellOfMachine } from '../../ts/cli/model_source.js'
import { cpuDecodedText } from '../../ts/machine_text.js'
import type { Session } from '../../ts/runtime/session.js'
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
    const told: unknown[] = []
    const ui = { warn: (key: string) => told.push(key), line: (text: string) => told.push(text) }
    const listen = ({ onWarning, onMeasuring }: Parameters<Session['listen']>[0]) =>
      Object.assign(tuning, { onWarning, onMeasuring })
    tellOfMachine({ session: { listen } }, ui as never)
    tuning.resume(state)
    expect(told.splice(0)).toEqual(['resume-kernels'])
    const measuring = { plan: 'efficientnet_b0 eval 8x224', ops: 34 }
    tuning.onMeasuring!(measuring)
    tuning.onMeasuring!({ ...measuring, seconds: 12.34 })
    expect(told).toEqual([
      'kernels  measuring those of 34 ops (efficientnet_b0 eval 8x224)',
      'kernels  34 ops (efficientnet_b0 eval 8x224) · measured in 12.3 s',
    ])
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
