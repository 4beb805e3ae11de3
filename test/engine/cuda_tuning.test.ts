/**
 * Which kernels a GPU's ops get, behind the public API: on a driver without a GPU whose kernels take as long as FAKE_CUDA_TIMES says,
 * and with a cuBLASLt of its kind (native/cuda/fake).
 */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { binding, type NativeBinding } from '../../ts/binding.js'
import { EffnetError } from '../../ts/errors.js'
import { createModel, imageFolder, type StepEvent, Trainer, type TrainerEvent } from '../../ts/index.js'
import { Model } from '../../ts/model.js'
import { initParams } from '../../ts/runtime/init.js'
import { Session } from '../../ts/runtime/session.js'
import { cacheFolder } from '../../ts/runtime/tuning.js'
import { BLOCK, smallConfig } from '../helpers/small_config.js'
import { describeWith, fakeLibraries } from '../helpers/stand_in.js'
import { makeData } from '../train/helpers/data.js'

const LIBRARIES = fakeLibraries('libcublasLt.so.13')
// Read when the backend is used first.
process.env['EFFNET_LIB_DIR'] = LIBRARIES.folder

const scratch = mkdtempSync(path.join(os.tmpdir(), 'effnet-tuning-'))
const cache = path.join(scratch, 'cache')
const stages = [BLOCK, { ...BLOCK, stride: 2, expand: 4, out: 16 }]
const config = smallConfig('efficientnet_b0', stages, { imageSize: 32, head: 32 })

const FIRST = 'cublaslt/0=0.1,cublaslt/1=9'
const SECOND = 'cublaslt/0=9,cublaslt/1=0.1'

async function tiny(deterministic = false): Promise<Model> {
  const session = await Session.create({ config, precision: 'fp32', device: 'cuda', deterministic })
  await initParams(config, 1, (param, values) => session.write(param.name, values))
  return new Model(session, config, { kind: 'random', matched: 0, total: session.slots.length }, undefined)
}

/** The classifier's kernel in a plan of a new model, and what binding it came to. */
async function classifier({ times = SECOND, deterministic = false } = {}) {
  process.env['FAKE_CUDA_TIMES'] = times
  const reports = vi.spyOn(binding(), 'tuning')
  const model = await tiny(deterministic)
  try {
    const warnings: string[] = []
    model.session.tuning!.onWarning = (code, message) => warnings.push(`${code}: ${message}`)
    const before = model.session.read('classifier.weight')
    const plan = await model.session.evalPlan({ batchSize: 2, imageSize: 32 })
    expect(model.session.read('classifier.weight')).toEqual(before)
    const kernel = plan.dump().find((row) => row.op === 'linear')!.kernel
    const { measured } = reports.mock.results.at(-1)!.value as { measured: number }
    return { kernel, measured, warnings }
  } finally {
    reports.mockRestore()
    await model.close()
  }
}

const kept = (): string[] => (existsSync(cache) ? readdirSync(path.join(cache, 'kernels')) : [])

describeWith(LIBRARIES, 'kernels that are measured', () => {
  let data: string
  beforeAll(async () => {
    data = await makeData(path.join(scratch, 'data'), { train: 2, val: 1 })
  })
  beforeEach(() => {
    vi.stubEnv('EFFNET_CUDA_TUNE', '1')
    vi.stubEnv('EFFNET_CACHE_DIR', cache)
    rmSync(cache, { recursive: true, force: true })
  })
  afterEach(() => {
    vi.unstubAllEnvs()
    vi.restoreAllMocks()
    delete process.env['FAKE_CUDA_TIMES']
  })
  afterAll(() => rmSync(scratch, { recursive: true, force: true }))

  it('takes the fastest, and keeps it on disk', async () => {
    const first = await classifier()
    expect(first).toMatchObject({ kernel: 'linear_f32:cublaslt/1', warnings: [] })
    expect(first.measured).toBeGreaterThan(0)
    expect(kept()).toHaveLength(1)
    expect(kept()[0]).toMatch(/^[0-9a-f]{32}\.json$/)
    // Another clock changes nothing: nothing is measured.
    expect(await classifier({ times: FIRST })).toEqual({ kernel: 'linear_f32:cublaslt/1', measured: 0, warnings: [] })
  })

  it('measures again where it was asked to, and keeps that', async () => {
    await classifier()
    vi.stubEnv('EFFNET_CUDA_TUNE', 'again')
    expect(await classifier({ times: FIRST })).toMatchObject({ kernel: 'linear_f32:cublaslt/0' })
    vi.stubEnv('EFFNET_CUDA_TUNE', '1')
    expect(await classifier()).toMatchObject({ kernel: 'linear_f32:cublaslt/0', measured: 0 })
  })

  it('says once that a file is damaged, and replaces it', async () => {
    await classifier()
    const file = path.join(cache, 'kernels', kept()[0]!)
    const whole = readFileSync(file, 'utf8')
    for (const damaged of [whole.slice(0, 90), '{}', 'null', whole.replace('"effnet-kernels"', '"other"'), '']) {
      writeFileSync(file, damaged)
      const { warnings, measured } = await classifier()
      expect(warnings).toEqual([expect.stringMatching(/^kernel-cache: .*\.json: damaged \(.*\); kernels are measured again$/)])
      expect(measured).toBeGreaterThan(0)
      expect(readFileSync(file, 'utf8')).toBe(whole)
    }
    expect(kept()).toHaveLength(1)
  })

  it('knows another driver, other libraries and another GPU apart', async () => {
    await classifier()
    const info = await binding().cudaInfo()
    const others = [
      { ...info, driverVersion: 13010 },
      { ...info, driverRelease: '580.95.05' },
      { ...info, libraries: info.libraries.map((l) => ({ ...l, version: l.name === 'cuBLASLt' ? '13.9.0' : l.version })) },
      { ...info, gpus: info.gpus.map((g) => ({ ...g, name: 'Another' })) },
    ]
    for (const [i, other] of others.entries()) {
      const spy = vi.spyOn(binding(), 'cudaInfo').mockResolvedValue(other)
      expect((await classifier({ times: FIRST })).kernel).toBe('linear_f32:cublaslt/0')
      expect(kept()).toHaveLength(2 + i)
      spy.mockRestore()
    }
  })

  it('goes on where nothing can be kept', async () => {
    writeFileSync(cache, 'a file')
    const { kernel, warnings } = await classifier()
    expect(kernel).toBe('linear_f32:cublaslt/1')
    expect(warnings).toEqual([expect.stringMatching(/^kernel-cache: .*not written \(.*EFFNET_CACHE_DIR/)])
    rmSync(cache)
  })

  it('goes by the table where results must not depend on it', async () => {
    const table = { kernel: 'linear_f32:cublaslt', measured: 0, warnings: [] }
    expect(await classifier({ deterministic: true })).toEqual(table)
    vi.stubEnv('EFFNET_CUDA_TUNE', '0')
    expect(await classifier()).toEqual(table)
    expect(kept()).toEqual([])
    vi.stubEnv('EFFNET_CUDA_TUNE', 'yes')
    await expect(createModel('efficientnet_b0', { device: 'cuda' })).rejects.toMatchObject({
      code: 'EFF_CONFIG_VALUE',
      message: 'EFFNET_CUDA_TUNE=yes: there are 0, 1 and again',
    })
  })

  it('takes the table where what was measured needs more memory than there is now, and keeps what was', async () => {
    await classifier()
    const [file] = kept()
    const read = () => readFileSync(path.join(cache, 'kernels', file!), 'utf8')
    const before = read()
    const full = new EffnetError('EFF_OOM', 'of scratch')
    const spy = vi.spyOn(binding(), 'bind').mockRejectedValueOnce(full)
    expect(await classifier()).toEqual({
      kernel: 'linear_f32:cublaslt',
      measured: 0,
      warnings: [expect.stringMatching(/^kernels: .* need more memory than there is now; those of a table are taken/)],
    })
    expect(read()).toBe(before)
    // With nothing kept there is nothing else to take.
    rmSync(cache, { recursive: true })
    spy.mockRejectedValueOnce(full)
    await expect(classifier()).rejects.toMatchObject({ code: 'EFF_OOM' })
    spy.mockRestore()
    expect(kept()).toEqual([])
  })

  it('keeps nothing for other starts where memory for measuring some was missing', async () => {
    const { tuning } = binding()
    const spy = vi.spyOn(binding(), 'tuning').mockImplementation((bound) => {
      const report = tuning(bound)
      return { ...report, measured: report.measured - 1 }
    })
    const model = await tiny()
    await model.session.evalPlan({ batchSize: 2, imageSize: 32 })
    // In force all the same, as a checkpoint has to know.
    expect(Object.keys(model.session.tuning!.state!.choices).length).toBeGreaterThan(1)
    await model.close()
    spy.mockRestore()
    expect(kept()).toEqual([])
  })

  it('says when measuring begins and what it took, once for a plan', async () => {
    const heard = async () => {
      const model = await tiny()
      const told: object[] = []
      model.session.listen({ onMeasuring: (measuring) => told.push(measuring) })
      await model.session.evalPlan({ batchSize: 2, imageSize: 32 })
      await model.close()
      return told
    }
    const plan = 'efficientnet_b0 eval 2x32'
    const [begins, ended, ...more] = (await heard()) as { ops: number }[]
    expect(more).toEqual([])
    expect(begins).toEqual({ plan, ops: expect.any(Number) })
    expect(begins!.ops).toBeGreaterThan(0)
    expect(ended).toEqual({ plan, ops: begins!.ops, seconds: expect.any(Number) })
    expect(await heard()).toEqual([])
    vi.stubEnv('EFFNET_CUDA_TUNE', '0')
    rmSync(cache, { recursive: true, force: true })
    expect(await heard()).toEqual([])
  })

  it('has a folder of its own for what can be made again', () => {
    expect(cacheFolder({ EFFNET_CACHE_DIR: '/a/b' })).toBe('/a/b')
    expect(cacheFolder({ XDG_CACHE_HOME: '/x' })).toBe('/x/effnet-native')
    expect(cacheFolder({ XDG_CACHE_HOME: 'relative' })).toBe(path.join(os.homedir(), '.cache/effnet-native'))
    expect(cacheFolder({})).toBe(path.join(os.homedir(), '.cache/effnet-native'))
  })

  describe('in a run', { timeout: 300_000 }, () => {
    const run = async (outDir: string, until: number, times: string, deterministic?: boolean) => {
      process.env['FAKE_CUDA_TIMES'] = times
      rmSync(cache, { recursive: true, force: true })
      const model = await tiny()
      const events: TrainerEvent[] = []
      const kernels: string[] = []
      const { bind } = binding()
      const spy = vi.spyOn(binding(), 'bind').mockImplementation(bindAndLook(bind, kernels))
      const halt = { name: 'halt', onStepEnd: (_: unknown, { step }: StepEvent) => void (step === until && trainer.stop('test')) }
      const trainer: Trainer = new Trainer({
        model,
        outDir,
        batchSize: 2,
        imageSize: 32,
        maxSteps: 3,
        seed: 1,
        callbacks: [halt],
        ...(deterministic !== undefined && { deterministic }),
      })
      const heard = (async () => {
        for await (const event of trainer.events()) events.push(event)
      })()
      const result = await trainer.fit({ ...(await imageFolder(data)), resume: 'auto' })
      await heard
      spy.mockRestore()
      const weights = model.session.read('classifier.weight')
      await model.close()
      const warnings = events.filter((e) => e.type === 'warning').map((e) => e.code)
      const measured = events.flatMap((e) => (e.type === 'kernels' ? [e.seconds !== undefined] : []))
      return { weights, warnings, kernels: [...new Set(kernels)], measured, first: events[0]?.type, result }
    }
    const bindAndLook =
      (bind: NativeBinding['bind'], kernels: string[]): NativeBinding['bind'] =>
      async (...args) => {
        const bound = await bind(...args)
        for (const { op, kernel } of binding().dump(bound)) if (op === 'linear') kernels.push(kernel)
        return bound
      }
    const stateOf = (outDir: string) => JSON.parse(readFileSync(path.join(outDir, 'checkpoints/last/state.json'), 'utf8'))

    it('goes on with the kernels that its checkpoint names, and with the same bits', async () => {
      const [whole, parted] = [path.join(scratch, 'whole'), path.join(scratch, 'parted')]
      const want = await run(whole, 3, SECOND)
      expect(want.kernels).toEqual(['linear_f32:cublaslt/1'])
      // Of training, first of all; validation has no other ops to measure.
      expect(want).toMatchObject({ first: 'kernels', measured: [false, true] })
      await run(parted, 1, SECOND)
      const { kernels, step } = stateOf(parted)
      expect(step).toBe(1)
      expect(kernels.machine).toMatchObject({ gpu: 'Fake H200', driver: 13000, libraries: { cuBLASLt: expect.any(String) } })
      expect(Object.values(kernels.choices)).toContain('cublaslt/1')
      const got = await run(parted, 3, FIRST)
      expect(got).toMatchObject({ kernels: ['linear_f32:cublaslt/1'], warnings: [] })
      expect(got.weights).toEqual(want.weights)
    })

    it('says that it goes on with others on another machine', async () => {
      const outDir = path.join(scratch, 'moved')
      await run(outDir, 1, SECOND)
      const info = await binding().cudaInfo()
      vi.spyOn(binding(), 'cudaInfo').mockResolvedValue({ ...info, driverVersion: 13010 })
      expect(await run(outDir, 2, FIRST)).toMatchObject({
        kernels: ['linear_f32:cublaslt/0'],
        warnings: ['resume-machine', 'resume-kernels'],
      })
      // From then on these are the run's.
      expect(await run(outDir, 3, SECOND)).toMatchObject({ kernels: ['linear_f32:cublaslt/0'], warnings: [] })
    })

    it('goes on without page-locked memory, tells it once, and has it in result and report', async () => {
      const [sound, outDir] = [path.join(scratch, 'locked'), path.join(scratch, 'unlocked')]
      const want = await run(sound, 3, SECOND)
      vi.stubEnv('FAKE_CUDA_LOCKABLE', '0')
      const got = await run(outDir, 3, SECOND)
      expect(got.weights).toEqual(want.weights)
      expect(want).toMatchObject({ warnings: [], result: expect.not.objectContaining({ unlockedBytes: expect.anything() }) })
      expect(got).toMatchObject({ warnings: ['host-memory'], result: { unlockedBytes: expect.any(Number) } })
      const said = /[\d.]+ \w+ for copies to the GPU were ordinary memory: the host had no page-locked memory left/
      expect(readFileSync(path.join(outDir, 'report.html'), 'utf8')).toMatch(said)
      expect(readFileSync(path.join(sound, 'report.html'), 'utf8')).not.toMatch(said)
    })

    it.each([
      ['EFF_INTERNAL', ['not-ahead']],
      ['EFF_GPU_FAULT', []], // the step that follows says it
    ] as const)('tells of a batch that was not copied ahead by %s', async (code, warnings) => {
      const spy = vi.spyOn(binding(), 'prefetch').mockRejectedValueOnce(new EffnetError(code, 'not copied'))
      expect(await run(path.join(scratch, code), 3, SECOND)).toMatchObject({ warnings })
      expect(spy).toHaveBeenCalledTimes(1)
      spy.mockRestore()
    })

    it('takes the table where it is told to be deterministic', async () => {
      const outDir = path.join(scratch, 'table')
      expect(await run(outDir, 1, SECOND, true)).toMatchObject({ kernels: ['linear_f32:cublaslt'], warnings: [] })
      expect(stateOf(outDir)).toMatchObject({ kernels: null, options: { deterministic: true } })
      // What another plan of the model has measured is not the run's.
      const model = await tiny()
      await model.session.evalPlan({ batchSize: 3, imageSize: 32 })
      expect(model.session.tuning!.state).not.toBeNull()
      const other = path.join(scratch, 'table-beside')
      const trainer = new Trainer({ model, outDir: other, batchSize: 2, imageSize: 32, maxSteps: 1, deterministic: true })
      await trainer.fit(await imageFolder(data))
      await model.close()
      expect(stateOf(other)).toMatchObject({ kernels: null })
    })
  })
})
