/** What a process may still allocate, from made-up /proc and /sys. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { byteText } from '../../ts/byte_text.js'
import { ARENA } from '../../ts/graph/plan_format.js'
import { createModel } from '../../ts/index.js'
import { availableMemory, memoryBytes } from '../../ts/runtime/memory_limit.js'
import { checkMemory, type Demand, type Room } from '../../ts/runtime/out_of_memory.js'

const GIB = 2 ** 30
let root: string

beforeEach(() => {
  root = mkdtempSync(path.join(os.tmpdir(), 'effnet-memory-'))
})
afterEach(() => rmSync(root, { recursive: true, force: true }))

function file(name: string, text: string): void {
  mkdirSync(path.dirname(path.join(root, name)), { recursive: true })
  writeFileSync(path.join(root, name), text)
}

describe('memory that is available', () => {
  it('is what the machine has free, swap too', async () => {
    file('proc/meminfo', 'MemTotal:       9000 kB\nMemAvailable:   4096 kB\nSwapFree:  1024 kB\n')
    expect(await availableMemory(root)).toBe(5120 * 1024)
  })

  it('is less in a control group, and in the group above it', async () => {
    file('proc/meminfo', 'MemAvailable:   8388608 kB\nSwapFree:  0 kB\n')
    file('proc/self/cgroup', '0::/box/job\n')
    file('sys/fs/cgroup/box/job/memory.max', 'max\n')
    file('sys/fs/cgroup/box/job/memory.current', `${GIB}\n`)
    expect(await availableMemory(root)).toBe(8 * GIB)
    file('sys/fs/cgroup/box/memory.max', `${4 * GIB}\n`)
    file('sys/fs/cgroup/box/memory.current', `${3 * GIB}\n`)
    file('sys/fs/cgroup/box/memory.stat', `anon 5\ninactive_file ${GIB}\nactive_file ${GIB / 2}\n`)
    expect(await availableMemory(root)).toBe(2.5 * GIB)
  })

  it('knows the older groups', async () => {
    file('proc/meminfo', 'MemAvailable:   8388608 kB\n')
    file('sys/fs/cgroup/memory/memory.limit_in_bytes', `${2 * GIB}\n`)
    file('sys/fs/cgroup/memory/memory.usage_in_bytes', `${GIB}\n`)
    file('sys/fs/cgroup/memory/memory.stat', `total_inactive_file ${GIB / 4}\n`)
    expect(await availableMemory(root)).toBe(1.25 * GIB)
  })

  it('is not limited where nothing says so', async () => {
    expect(await availableMemory(root)).toBe(Infinity)
  })
})

it.each([
  [1, '1 byte'],
  [1023, '1023 bytes'],
  [1024, '1.0 KiB'],
  [2 ** 20 - 1, '1.0 MiB'],
  [16127127, '15.4 MiB'],
  [1.5 * GIB, '1.5 GiB'],
  [5000 * GIB, '5000.0 GiB'],
])('%d bytes are "%s"', (bytes, text) => {
  expect(byteText(bytes)).toBe(text)
})

describe('a plan too large', () => {
  const arenas = Array.from({ length: 9 }, () => 0)
  arenas[ARENA.weights] = GIB / 4
  arenas[ARENA.activations] = 8 * GIB

  const demand = (more: Partial<Demand> = {}): Demand => ({
    what: 'a plan',
    batchSize: 32,
    arenaBytes: arenas,
    held: [],
    largest: [{ name: 'wide', shape: 'f32[32,8]', bytes: 3 * 2 ** 20 }],
    ...more,
  })
  /** A quarter GiB an image, and beside it a 1/16 where `beside` is given. */
  const demandOf =
    (more: Partial<Demand> = {}, perImageBeside = 0) =>
    (batchSize: number): Promise<Demand> => {
      const arenaBytes = arenas.with(ARENA.activations, (batchSize * GIB) / 4)
      return Promise.resolve(demand({ arenaBytes, ...more, beside: (more.beside ?? 0) + batchSize * perImageBeside, batchSize }))
    }
  const check = async (room: Room, batchSize = 32, ...of: Parameters<typeof demandOf>): Promise<void> => {
    const demands = demandOf(...of)
    await checkMemory(await demands(batchSize), room, demands)
  }

  it('is refused with the batch that fits', async () => {
    await expect(check({ available: 2 * GIB })).rejects.toMatchObject({
      code: 'EFF_OOM',
      message: 'a plan needs 8.3 GiB of memory; 2.0 GiB are available; the largest tensors: wide f32[32,8] (3.0 MiB)',
      hint: '--batch-size 6',
    })
    // 0.9 of 2 GiB less the weights, a quarter GiB an image.
    await check({ available: 2 * GIB }, 6)
    await expect(check({ available: 2 * GIB }, 6, { beside: GIB })).rejects.toMatchObject({ code: 'EFF_OOM' })
  })

  it.each([8, 64, 1000, 7000, 65536])(
    'counts what lies beside the arenas and grows with the batch: asked for %d',
    async (batch) => {
      // 5/16 GiB an image, of 0.9 * 2 GiB less the weights.
      await expect(check({ available: 2 * GIB }, batch, {}, GIB / 16)).rejects.toMatchObject({ hint: '--batch-size 4' })
      // More than all of it for the images beside the arenas alone.
      await expect(check({ available: 100 * GIB }, 65536, {}, GIB / 16)).rejects.toMatchObject({ hint: '--batch-size 287' })
    },
  )

  it('is named with a batch that has room for its scratch too, and not refused for that', async () => {
    const withScratch = (batchSize: number) =>
      Promise.resolve({
        ...demand({ batchSize, arenaBytes: arenas.with(ARENA.activations, (batchSize * GIB) / 4) }),
        scratch: (batchSize * GIB) / 20,
      })
    const room = { available: 2 * GIB }
    await checkMemory(await withScratch(7), room, withScratch)
    // 0.3 GiB an image.
    await expect(checkMemory(await withScratch(8), room, withScratch)).rejects.toMatchObject({ hint: '--batch-size 5' })
  })

  it('is named with a batch that fits where what it needs is no line', async () => {
    const steps = (batchSize: number): Promise<Demand> =>
      Promise.resolve(
        demand({ batchSize, arenaBytes: arenas.with(ARENA.activations, 2 ** 20 * 2 ** Math.ceil(Math.log2(batchSize))) }),
      )
    const error = await checkMemory(await steps(4096), { available: 2 * GIB }, steps).catch((e: unknown) => e)
    const { batchSizeThatFits: fits } = (error as { details: { batchSizeThatFits: number } }).details
    // 0.9 * 2 GiB less the weights: 1593 MiB, so that 1024 images have room and 1025 do not.
    expect(fits).toBeGreaterThan(512)
    expect(fits).toBeLessThanOrEqual(1024)
  })

  it('names the limit where that is what it does not fit into', async () => {
    for (const batch of [1, 32]) {
      await expect(check({ available: GIB / 4, limit: 3 * GIB }, batch)).rejects.toMatchObject({
        message: expect.stringContaining('256.0 MiB are left of the limit of 3.0 GiB'),
        hint: 'a smaller model, or a larger memoryLimit; the weights and what goes with them take 256.0 MiB more, whatever the batch',
      })
    }
    // 0.49 GiB have room for the weights, and for none of the images of a quarter GiB.
    await expect(check({ available: 0.49 * GIB, limit: 3 * GIB })).rejects.toMatchObject({
      hint: 'a smaller --image-size or model, or a larger memoryLimit',
    })
  })

  it('names the machine that has too little', async () => {
    await expect(check({ available: GIB / 4 })).rejects.toMatchObject({
      hint: expect.stringContaining('a machine with more memory'),
    })
    await expect(check({ available: GIB / 4, gpu: true })).rejects.toMatchObject({
      hint: expect.stringContaining('a GPU with more memory'),
    })
  })

  it('is only charged for what is not there yet', async () => {
    await check({ available: GIB }, 32, { held: [...arenas] })
  })
})

describe('a memory limit', () => {
  it('is a share of the machine or an amount', () => {
    const total = 10 * GIB
    for (const [given, bytes] of [
      [0.5, 5 * GIB],
      ['0.5', 5 * GIB],
      ['50%', 5 * GIB],
      [1, total],
      [2e9, 2e9],
      ['2e9', 2e9],
      ['2GB', 2e9],
      ['1.5 GiB', 1.5 * GIB],
      ['500MiB', 500 * 2 ** 20],
      ['8G', 8 * GIB],
      ['8gb', 8e9],
      ['.5', 5 * GIB],
    ] as const)
      expect(memoryBytes(given, total), String(given)).toBe(bytes)
    for (const wrong of [
      '',
      'all',
      '-1',
      0,
      '0GiB',
      '120%',
      '8 T',
      Number.NaN,
      '1 000',
      2,
      '0.000001',
      '1e400',
      '99999999999GiB',
    ])
      expect(() => memoryBytes(wrong, total), String(wrong)).toThrow(
        expect.objectContaining({ code: 'EFF_CONFIG_VALUE', hint: expect.stringContaining("'8GiB'") }),
      )
  })

  it('holds for all plans of a model together, and names the batch that fits below it', async () => {
    const model = await createModel('efficientnet_b0', { memoryLimit: '120MiB', threads: 1 })
    const plan = (batchSize: number) => model.session.evalPlan({ batchSize, imageSize: 64 })
    await plan(1)
    const refused = await plan(4096).then(
      () => undefined,
      (error: unknown) => error as { code: string; message: string; details: { batchSizeThatFits: number } },
    )
    expect(refused).toMatchObject({
      code: 'EFF_OOM',
      message: expect.stringMatching(/left of the limit of 120\.0 MiB; the largest/),
    })
    const fits = refused!.details.batchSizeThatFits
    expect(fits).toBeGreaterThan(1)
    await plan(fits)
    await model.close()
    await expect(createModel('efficientnet_b0', { memoryLimit: '5MB' })).rejects.toMatchObject({
      code: 'EFF_OOM',
      message: expect.stringMatching(/^efficientnet_b0: its weights alone take 20\.\d MiB; the limit is 4\.8 MiB$/),
      hint: 'a larger memoryLimit, or a smaller model: no batch fits beside these weights',
    })
  })
})
