/** What a run that goes on somewhere else, or with other kernels, says of itself. */
import { describe, expect, it, vi } from 'vitest'
import { type KernelState, KernelTuning, type TuningMachine } from '../../ts/runtime/tuning.js'
import { changedMachine, type MachineState } from '../../ts/train/checkpoint.js'
import { changedOptions } from '../../ts/train/resume.js'
import type { ResolvedOptions } from '../../ts/train/types.js'

const h200: TuningMachine = {
  package: '1.0.0',
  gpu: 'NVIDIA H200',
  computeCapability: 9,
  driver: 13000,
  driverRelease: '580.65.06',
  libraries: { cuBLASLt: '13.0.2', cuDNN: '9.19.0' },
}
const here = { package: '1.0.0', onednn: '3.2', isa: 'avx3', onednnIsa: 'avx512_core' }
const cpu: MachineState = { ...here, device: 'cpu' }
const onGpu = (gpu: Partial<TuningMachine> = {}): MachineState => ({ ...here, device: 'cuda', gpu: { ...h200, ...gpu } })

describe('a machine that changed', () => {
  it('is told by device, GPU, driver and library', () => {
    expect(changedMachine(onGpu(), onGpu())).toEqual([])
    expect(changedMachine(onGpu(), cpu)).toEqual(['device was cuda and is cpu'])
    expect(changedMachine(cpu, onGpu())).toEqual(['device was cpu and is cuda'])
    expect(changedMachine(onGpu(), onGpu({ gpu: 'NVIDIA A100', computeCapability: 8, driver: 13010 }))).toEqual([
      'gpu was NVIDIA H200 and is NVIDIA A100',
      'computeCapability was 9 and is 8',
      'driver was 13000 and is 13010',
    ])
    expect(changedMachine(onGpu(), onGpu({ driverRelease: '580.95.05' }))).toEqual([
      'driverRelease was 580.65.06 and is 580.95.05',
    ])
    const { cuDNN: _, ...without } = h200.libraries
    expect(changedMachine(onGpu({ libraries: without }), onGpu())).toEqual(['cuDNN was absent and is 9.19.0'])
    expect(changedMachine(onGpu(), onGpu({ libraries: without }))).toEqual(['cuDNN was 9.19.0 and is absent'])
  })

  it('is not told of a run that did not keep its device', () => {
    expect(changedMachine(here, onGpu())).toEqual([])
    expect(changedMachine({ ...here, isa: 'avx2' }, cpu)).toEqual(['isa was avx2 and is avx3'])
  })
})

it('deterministic and the loss scale are options that a resumed run should have as before', () => {
  const others = 'precision batchSize imageSize optimizer schedule labelSmoothing ema augment dropRate dropPathRate bnMomentum'
  const more = 'clipNorm maxEpochs maxSteps seed accumulate dataBackend'
  const same = { ...Object.fromEntries(`${others} ${more}`.split(' ').map((key) => [key, 0])), halfWeightGradients: false }
  const options = (o: object) => ({ ...same, ...o }) as unknown as ResolvedOptions
  expect(changedOptions(options({ halfWeightGradients: undefined }), options({ deterministic: false, lossScale: null }))).toEqual(
    [],
  )
  expect(changedOptions(options({ deterministic: false }), options({ deterministic: true, lossScale: null }))).toEqual([
    'deterministic was false and is true',
  ])
  const scale = { initial: 65536, interval: 2000, growth: 2, backoff: 0.5 }
  expect(
    changedOptions(
      options({ deterministic: false }),
      options({ lossScale: null, deterministic: false, halfWeightGradients: true }),
    ),
  ).toEqual(['halfWeightGradients was false and is true'])
  const then = options({ deterministic: false, lossScale: scale })
  expect(changedOptions(then, options({ deterministic: false, lossScale: { ...scale, interval: 100 } }))).toEqual([
    'lossScale.interval was 2000 and is 100',
  ])
  expect(changedOptions(then, options({ deterministic: false, lossScale: null }))).toEqual(['lossScale was set and is not set'])
})

describe('kernels that a checkpoint has and that are not used', () => {
  const resumed = async (mode: string | undefined, table: boolean, state: KernelState | null) => {
    vi.stubEnv('EFFNET_CUDA_TUNE', mode)
    const tuning = await KernelTuning.open('cuda:0')
    const told: string[] = []
    tuning.onWarning = (code, message) => told.push(`${code}: ${message}`)
    tuning.resume(state && { ...state, machine: tuning.machine }, table)
    vi.unstubAllEnvs()
    return told
  }
  const state: KernelState = { machine: h200, choices: { linear: 'cublaslt/1' } }

  it.each([
    ['0', false, 'EFFNET_CUDA_TUNE=0 takes'],
    ['again', false, 'EFFNET_CUDA_TUNE=again measures'],
    [undefined, true, 'deterministic takes'],
  ] as const)('are told: EFFNET_CUDA_TUNE=%s, deterministic %s', async (mode, table, why) => {
    expect(await resumed(mode, table, state)).toEqual([expect.stringMatching(`^resume-kernels: .*${why}.*not be bit-identical`)])
    expect(await resumed(mode, table, null)).toEqual([])
  })

  it('are not where they are used', async () => {
    expect(await resumed(undefined, false, state)).toEqual([])
  })
})
