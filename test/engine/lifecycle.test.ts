import { execFileSync } from 'node:child_process'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { Worker } from 'node:worker_threads'
import { describe, expect, it } from 'vitest'
import { ARENA, binding } from '../../ts/binding.js'
import { EffnetError } from '../../ts/errors.js'
import { getModelConfig, modelParams } from '../../ts/nn/index.js'
import { emit } from '../../ts/passes/emit.js'
import { planMemory } from '../../ts/passes/plan_memory.js'
import { openDevice } from '../../ts/runtime/device.js'
import { evalProgram } from '../../ts/runtime/programs.js'
import { packScalars } from '../../ts/runtime/scalars.js'
import { Session } from '../../ts/runtime/session.js'
import { weightsLayout } from '../../ts/runtime/weights_layout.js'
import { FAKE_DRIVER, skipReason } from '../helpers/stand_in.js'
import { goldenSession, hashPixels } from './harness.js'

const config = getModelConfig('efficientnet_b0', { numClasses: 5 })
const pixels = hashPixels(1, 32 * 32 * 3)

const codeOf = async (work: Promise<unknown> | (() => unknown)): Promise<string> => {
  try {
    await (typeof work === 'function' ? work() : work)
  } catch (e) {
    return e instanceof EffnetError ? e.code : `${e}`
  }
  return 'ok'
}

// Read when a GPU is asked for first.
process.env['EFFNET_LIB_DIR'] = FAKE_DRIVER.folder

/** On a GPU all runs in emulation (native/cuda/fake). */
const DEVICES = [
  { device: 'cpu', batchSize: 8, imageSize: 128 },
  { device: 'cuda', batchSize: 1, imageSize: 32 },
].map((each) => ({ ...each, reason: each.device === 'cpu' ? '' : skipReason(FAKE_DRIVER) }))
/** Those on which it can run; the others by their reason. */
const HERE = DEVICES.filter(({ reason }) => reason === '')
describe.skipIf(HERE.length === DEVICES.length)(`on every device${DEVICES.map(({ reason }) => reason).join('')}`, () => {
  it('is tried', () => expect(HERE).toEqual(DEVICES))
})

describe.each(HERE)('closing, on $device', ({ device }) => {
  it('gives back every native byte and handle', async () => {
    const before = binding().memoryUsage()
    for (let i = 0; i < 3; i++) {
      const session = await goldenSession(config, 'fp32', 2, device)
      const plan = await session.evalPlan({ batchSize: 1, imageSize: 32 })
      await plan.run(plan.packInput(pixels))
      session.close()
      session.close()
    }
    const after = binding().memoryUsage()
    expect({ ...after, handles: 0 }).toEqual({ ...before, handles: 0 })
    const gpu = device === 'cpu' ? undefined : binding().deviceInfo(await openDevice('cuda:0'))
    expect(gpu?.availableBytes).toBe(gpu?.totalBytes)
  })

  it('refuses later use with EFF_CLOSED', async () => {
    const session = await goldenSession(config, 'fp32', 2, device)
    const plan = await session.evalPlan({ batchSize: 1, imageSize: 32 })
    session.close()
    expect(await codeOf(() => plan.run({ bytes: new Uint8Array(4096) }))).toBe('EFF_CLOSED')
    expect(await codeOf(() => session.evalPlan({ batchSize: 1, imageSize: 32 }))).toBe('EFF_CLOSED')
    expect(await codeOf(() => session.read('classifier.bias'))).toBe('EFF_CLOSED')
  })

  it('settles steps in flight', async () => {
    const session = await goldenSession(config, 'fp32', 2, device)
    const plan = await session.evalPlan({ batchSize: 1, imageSize: 32 })
    const running = Array.from({ length: 20 }, () => codeOf(plan.run(plan.packInput(pixels))))
    session.close()
    for (const code of await Promise.all(running)) expect(['ok', 'EFF_ABORTED']).toContain(code)
  })
})

describe('bad input', () => {
  it('is refused by name', async () => {
    const session = await goldenSession(config)
    const plan = await session.evalPlan({ batchSize: 1, imageSize: 32 })
    expect(await codeOf(() => plan.run({ bytes: new Uint8Array(10) }))).toBe('EFF_INVALID_ARGUMENT')
    expect(await codeOf(() => plan.packInput(new Uint8Array(10)))).toBe('EFF_INVALID_ARGUMENT')
    expect(await codeOf(() => session.write('classifier.bias', new Float32Array(3)))).toBe('EFF_INVALID_ARGUMENT')
    expect(await codeOf(() => binding().closeExecutable({} as never))).toBe('EFF_INVALID_ARGUMENT')
    // A memory where an executable is expected: the type tag tells.
    expect(await codeOf(() => binding().dump(session.memory as never))).toBe('EFF_INVALID_ARGUMENT')
    session.close()
  })

  const smallPlan = () => {
    const { graph } = evalProgram(config, { batchSize: 1, imageSize: 32, dtype: 'f32', target: { device: 'cpu' } })
    const layout = weightsLayout(modelParams(config))
    const memory = planMemory(graph, { weightOffsets: layout.offsets, weightBytes: layout.bytes })
    return { graph, memory, bytes: emit(graph, memory).bytes }
  }
  const generator = (state: number) => (n: number) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0
    return Math.floor((state / 4294967296) * n)
  }

  it('a plan changed in any byte is refused or harmless, never a crash', () => {
    const { graph, bytes } = smallPlan()
    expect(binding().verifyPlan(bytes).ops).toBe(graph.nodes.length)
    let refused = 0
    const random = generator(12345)
    const tries = 4000
    for (let i = 0; i < tries; i++) {
      const copy = bytes.slice(0, random(20) === 0 ? random(bytes.length) : bytes.length)
      for (let k = 0; k < 1 + random(4) && copy.length > 0; k++) copy[random(copy.length)] = random(256)
      try {
        binding().verifyPlan(copy)
      } catch (e) {
        expect((e as EffnetError).code).toBe('EFF_PLAN_INVALID')
        refused++
      }
    }
    expect(refused).toBeGreaterThan(tries / 2)
  })

  it('a changed plan that is well-formed runs without harm', async () => {
    const { memory, bytes } = smallPlan()
    const native = binding()
    const pool = native.createPool(2)
    const arenas = native.createMemory(memory.arenaBytes.map((size, arena) => (arena <= ARENA.activations ? size : 0)))
    const input = { bytes: new Uint8Array(memory.arenaBytes[ARENA.input]!) }
    const header = new DataView(bytes.buffer)
    const [refs, refsAt, attrs, attrsAt] = [32, 56, 36, 64].map((at) => header.getUint32(at, true)) as [
      number,
      number,
      number,
      number,
    ]
    const random = generator(54321)
    let stepped = 0
    for (let i = 0; stepped < 40 && i < 20_000; i++) {
      const copy = bytes.slice()
      const view = new DataView(copy.buffer)
      // An attribute of another value, or an operand in another's place.
      if (random(2)) view.setFloat64(attrsAt + 8 * random(attrs), random(6), true)
      else view.setUint32(refsAt + 4 * random(refs), view.getUint32(refsAt + 4 * random(refs), true), true)
      const code = await codeOf(() => native.verifyPlan(copy))
      expect(['ok', 'EFF_PLAN_INVALID']).toContain(code)
      if (code !== 'ok') continue
      const work = native.bind(pool, arenas, copy).then(async (executable) => {
        await native.step(executable, input, packScalars({}))
        native.closeExecutable(executable)
      })
      expect(['ok', 'EFF_PLAN_INVALID']).toContain(await codeOf(work))
      stepped++
    }
    expect(stepped).toBe(40)
    native.closeMemory(arenas)
    native.closePool(pool)
  })
})

describe.each(HERE)('processes and threads, on $device', ({ device, batchSize, imageSize }) => {
  // The built package, as users run it.
  const dist = (file: string): string => JSON.stringify(pathToFileURL(path.resolve('dist', file)).href)
  const script = (body: string): string => `(async () => {
    const { getModelConfig } = await import(${dist('nn/index.js')})
    const { Session } = await import(${dist('runtime/session.js')})
    const session = await Session.create({ config: getModelConfig('efficientnet_b0'), precision: 'fp32', threads: 2, device: '${device}' })
    const plan = await session.evalPlan({ batchSize: ${batchSize}, imageSize: ${imageSize} })
    const input = plan.packInput(new Uint8Array(${batchSize * imageSize ** 2 * 3}))
    ${body}
  })()`
  const run = (body: string): { status: number; stderr: string } => {
    try {
      execFileSync(process.execPath, ['-e', script(body)], {
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'pipe'],
        timeout: 60_000,
      })
      return { status: 0, stderr: '' }
    } catch (e) {
      const { status, signal, stderr } = e as { status: number | null; signal: string | null; stderr: string }
      return { status: status ?? -1, stderr: `${signal ?? ''} ${stderr}` }
    }
  }

  it('exit with a step in flight is clean: process.exit, falling off the end, an uncaught error', () => {
    expect(run('plan.run(input); process.exit(7)')).toMatchObject({ status: 7 })
    expect(run('plan.run(input)')).toEqual({ status: 0, stderr: '' })
    const thrown = run("plan.run(input); throw new Error('on purpose')")
    expect(thrown.status).toBe(1)
    expect(thrown.stderr).toContain('on purpose')
  })

  it('works in a worker thread, and terminating it mid-step is clean', async () => {
    const source = (after: string): string =>
      script(`
      const { parentPort } = require('node:worker_threads')
      const result = await plan.run(input)
      parentPort.postMessage(result.logits.length)
      ${after}`)
    for (const after of ['', 'for (;;) await plan.run(input)']) {
      const worker = new Worker(source(after), { eval: true })
      // Listened for from the start: a worker that ends at once tells of its message and its end in one go.
      const ended = new Promise((resolve) => worker.once('exit', resolve))
      const size = await new Promise((resolve, reject) => {
        worker.once('message', resolve)
        worker.once('error', reject)
      })
      expect(size).toBe(batchSize * 1000)
      if (after) await worker.terminate()
      await ended
    }
    const session = await Session.create({ config, precision: 'fp32', threads: 1, device })
    session.close()
  })
})
