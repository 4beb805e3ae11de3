/** The native loader through the addon. */
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { afterEach, describe, expect, it } from 'vitest'
import { binding, type DecodedImage, type LoaderBatch, type LoaderHandle, type LoaderOptions } from '../../ts/binding.js'
import { EffnetError } from '../../ts/errors.js'
import { IO_FIXTURES, sha256 } from './helpers/fixtures.js'

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..')
const NAMES = ['420.jpg', '422.jpg', '444.jpg', 'progressive.jpg', 'gray.jpg', 'cmyk.jpg', 'large.jpg', 'orientation6.jpg']
const SIZE = 32
const PIXELS = SIZE * SIZE * 3

const options = (change: Partial<LoaderOptions> = {}): LoaderOptions => ({
  files: NAMES.map((name) => path.join(IO_FIXTURES, name)),
  labels: Int32Array.from(NAMES, (_, i) => 10 + i),
  batchSize: 3,
  decode: { mode: 'train', size: SIZE },
  workers: 2,
  prefetch: 2,
  ...change,
})

const ORDER = Uint32Array.from({ length: 20 }, (_, i) => (i * 3) % NAMES.length)

const open: LoaderHandle[] = []
const create = (change: Partial<LoaderOptions> = {}): LoaderHandle => {
  const loader = binding().createLoader(options(change))
  open.push(loader)
  return loader
}
afterEach(() => {
  for (const loader of open.splice(0)) binding().closeLoader(loader)
})

async function* batches(loader: LoaderHandle): AsyncGenerator<LoaderBatch> {
  for (let batch = await binding().loaderNext(loader); batch; batch = await binding().loaderNext(loader)) yield batch
}

const summary = (batch: LoaderBatch): unknown => {
  const bytes = binding().readBatch(batch.batch)
  binding().releaseBatch(batch.batch)
  return [sha256(bytes), batch.count, [...batch.indices], batch.bad]
}

async function epoch(loader: LoaderHandle, order = ORDER, start = 0, seed = 1): Promise<unknown[]> {
  binding().loaderStart(loader, order, start, 0, seed, false)
  const seen: unknown[] = []
  for await (const batch of batches(loader)) {
    expect(batch.waitMs).toBeGreaterThanOrEqual(0)
    seen.push(summary(batch))
  }
  return seen
}

const codeOf = async (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => 'resolved',
    (e: unknown) => (e instanceof EffnetError ? e.code : e),
  )

describe('loader', () => {
  it('gives the same batches whatever the workers, and from any start', async () => {
    const one = await epoch(create({ workers: 1, prefetch: 1 }))
    expect(one).toHaveLength(7)
    const three = create({ workers: 3, prefetch: 4 })
    expect(await epoch(three)).toEqual(one)
    expect(await epoch(three, ORDER, 6)).toEqual(one.slice(2))
    expect(await epoch(three, ORDER, 0, 2)).not.toEqual(one)
  })

  it('lays a batch out as the input arena', async () => {
    const loader = create()
    binding().loaderStart(loader, Uint32Array.of(4, 2), 0, 0, 0, false)
    const batch = (await binding().loaderNext(loader))!
    const bytes = binding().readBatch(batch.batch)
    const labelsAt = Math.ceil((3 * PIXELS) / 64) * 64
    expect(bytes.length).toBe(labelsAt + 64)
    expect([...new Int32Array(bytes.buffer, labelsAt, 3)]).toEqual([14, 12, -1])
    expect(bytes.subarray(2 * PIXELS, 3 * PIXELS).every((v) => v === 0)).toBe(true)
    expect(batch.count).toBe(2)
    expect(await binding().loaderNext(loader)).toBeNull()
    binding().releaseBatch(batch.batch)
    expect(() => binding().readBatch(batch.batch)).toThrowError(expect.objectContaining({ code: 'EFF_CLOSED' }))
  })

  it('reports unreadable files with code and path and goes on', async () => {
    const files = [...options().files]
    files[1] = path.join(IO_FIXTURES, 'none.jpg')
    files[2] = path.join(IO_FIXTURES, 'jpeg.tsv')
    const seen = (await epoch(create({ files, batchSize: 4 }), Uint32Array.of(0, 1, 2, 3, 4, 5))) as [
      string,
      number,
      number[],
      LoaderBatch['bad'],
    ][]
    expect(seen.map((b) => b[2])).toEqual([[0, 3, 4, 5]])
    expect(seen[0]![3]).toEqual([
      { index: 1, code: 'EFF_DATA_MISSING', message: `${files[1]}: open: No such file or directory` },
      { index: 2, code: 'EFF_DATA_DECODE', message: `${files[2]}: unknown format, not a JPEG, and no decoder for it is at hand` },
    ])
  })

  it('hands other formats to JavaScript and transforms the pixels itself', async () => {
    const files = [...options().files]
    files[1] = path.join(IO_FIXTURES, 'eval.tsv')
    files[2] = path.join(IO_FIXTURES, 'crop.tsv')
    files[3] = path.join(IO_FIXTURES, 'resize.tsv')
    const image = await binding().decodeJpeg(await import('node:fs').then((fs) => fs.readFileSync(files[0]!)), {
      mode: 'full',
      size: 1,
    })
    const asked: string[] = []
    const decodeOther = async (bytes: Uint8Array, name: string): Promise<DecodedImage> => {
      asked.push(path.basename(name))
      expect(bytes.length).toBeGreaterThan(100)
      await new Promise((resolve) => setTimeout(resolve, 5))
      if (name.endsWith('crop.tsv')) throw new EffnetError('EFF_DATA_LIMIT', 'far too large')
      if (name.endsWith('resize.tsv')) return { width: 3, height: 3, data: new Uint8Array(1) }
      return image
    }
    const decode = { mode: 'eval', size: SIZE, resizeTo: 40 } as const
    const loader = create({ files, decode, decodeOther, batchSize: 2 })
    binding().loaderStart(loader, Uint32Array.of(0, 1, 2, 3), 0, 0, 0, false)
    const batch = (await binding().loaderNext(loader))!
    expect([...batch.indices]).toEqual([0, 1])
    const bytes = binding().readBatch(batch.batch)
    expect(sha256(bytes.subarray(PIXELS, 2 * PIXELS))).toBe(sha256(bytes.subarray(0, PIXELS)))
    const rest = (await binding().loaderNext(loader))!
    expect(rest.count).toBe(0)
    expect(rest.bad.map((b) => [b.index, b.code])).toEqual([
      [2, 'EFF_DATA_LIMIT'],
      [3, 'EFF_DATA_DECODE'],
    ])
    expect(rest.bad[0]!.message).toBe(`${files[2]}: far too large`)
    expect(rest.bad[1]!.message).toContain('27 bytes, not 1')
    expect(asked.sort()).toEqual(['crop.tsv', 'eval.tsv', 'resize.tsv'])
  })

  it('closes with calls waiting and batches out', async () => {
    const loader = create({ batchSize: 8, prefetch: 1 })
    binding().loaderStart(
      loader,
      Uint32Array.from({ length: 4000 }, (_, i) => i % NAMES.length),
      0,
      0,
      0,
      false,
    )
    const kept = (await binding().loaderNext(loader))!
    const waiting = Array.from({ length: 50 }, () => codeOf(binding().loaderNext(loader)))
    binding().closeLoader(loader)
    const codes = await Promise.all(waiting)
    expect(new Set(codes)).toContain('EFF_CLOSED')
    expect(codes.every((code) => code === 'EFF_CLOSED' || code === 'resolved')).toBe(true)
    expect(binding().readBatch(kept.batch).length).toBeGreaterThan(8 * PIXELS)
    expect(() => binding().loaderNext(loader)).toThrowError(expect.objectContaining({ code: 'EFF_CLOSED' }))
    binding().releaseBatch(kept.batch)
    binding().closeLoader(loader)
  })

  it('gives every byte back', async () => {
    // Batches of earlier tests may still wait for the collector and go meanwhile.
    const before = binding().memoryUsage().batches
    const loader = create()
    await epoch(loader)
    binding().closeLoader(loader)
    for (let i = 0; i < 200 && binding().memoryUsage().batches > before; i++)
      await new Promise((resolve) => setTimeout(resolve, 5))
    expect(binding().memoryUsage().batches).toBeLessThanOrEqual(before)
  })

  it('refuses nonsense', () => {
    const code = (work: () => unknown): unknown => {
      try {
        work()
      } catch (e) {
        return (e as EffnetError).code
      }
      return undefined
    }
    expect(code(() => create({ labels: new Int32Array(2) }))).toBe('EFF_INVALID_ARGUMENT')
    expect(code(() => create({ batchSize: 0 }))).toBe('EFF_INVALID_ARGUMENT')
    expect(code(() => create({ decode: { mode: 'full', size: 1 } }))).toBe('EFF_INVALID_ARGUMENT')
    const loader = create()
    expect(code(() => binding().loaderStart(loader, Uint32Array.of(8), 0, 0, 0, false))).toBe('EFF_INVALID_ARGUMENT')
    expect(code(() => binding().loaderStart({} as LoaderHandle, ORDER, 0, 0, 0, false))).toBe('EFF_INVALID_ARGUMENT')
  })
})

/** Runs in a process or thread of its own: starts loaders and leaves them in all stages. */
const LEAVE = `
const a = require(process.env.ADDON)
a.setErrorFactory((code, message) => Object.assign(new Error(message), { code }))
const files = JSON.parse(process.env.FILES)
const make = () => a.createLoader({ files, labels: new Int32Array(files.length), batchSize: 4, decode: { mode: 'train', size: 64 },
  workers: 3, prefetch: 2, decodeOther: async () => { await new Promise((r) => setTimeout(r, 50)); return { width: 1, height: 1, data: new Uint8Array(3) } } })
const order = Uint32Array.from({ length: 4000 }, (_, i) => i % files.length)
globalThis.loaders = [make(), make(), make()]
for (const l of loaders.slice(1)) a.loaderStart(l, order, 0, 0, 0, false)
a.decodeJpeg(require('node:fs').readFileSync(files[0]), { mode: 'full', size: 1 })
`
const environment = () => ({
  ...process.env,
  ADDON: process.env['EFFNET_ADDON'] ?? path.join(ROOT, 'build/Release/effnet.node'),
  FILES: JSON.stringify([...options().files, path.join(IO_FIXTURES, 'eval.tsv')]),
})

describe('leaving with work in flight', () => {
  it.each([
    ['process.exit', 'a.loaderNext(loaders[1]).then(() => process.exit(0))'],
    ['the end of the script', 'a.loaderNext(loaders[1])'],
    ['an uncaught error', 'a.loaderNext(loaders[1]).then(() => { throw new Error("mine") })'],
  ])('by %s is clean', (name, end) => {
    const child = spawnSync(process.execPath, ['-e', LEAVE + end], { env: environment(), encoding: 'utf8', timeout: 30_000 })
    expect(child.signal).toBeNull()
    expect(child.status).toBe(name === 'an uncaught error' ? 1 : 0)
  })

  it('a worker thread can be terminated, and another one started', async () => {
    binding()
    for (let round = 0; round < 3; round++) {
      const worker = new Worker(
        `${LEAVE}\na.loaderNext(loaders[1]).then(() => require('node:worker_threads').parentPort.postMessage(1)); setInterval(() => a.loaderNext(loaders[2]), 1)`,
        {
          eval: true,
          env: environment(),
        },
      )
      await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
      await worker.terminate()
    }
  })
})
