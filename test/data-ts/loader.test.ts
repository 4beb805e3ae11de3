import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import sharp from 'sharp'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { decodeOther } from '../../ts/data/decode.js'
import { type DataLoaderOptions, type ImageDataset, type ImageLoader, imageFolder } from '../../ts/index.js'
import { makeData } from '../train/helpers/data.js'

const root = mkdtempSync(path.join(os.tmpdir(), 'effnet-loader-'))
let data: ImageDataset

beforeAll(async () => {
  const dir = await makeData(root, { train: 7, val: 1, side: 40 })
  // Not every photo is a JPEG.
  const jpeg = path.join(dir, 'train/green/003.jpg')
  const png = await sharp(readFileSync(jpeg)).png().toBuffer()
  rmSync(jpeg)
  writeFileSync(path.join(dir, 'train/green/003.png'), png)
  data = await imageFolder(dir, { split: 'train' })
})
afterAll(() => rmSync(root, { recursive: true, force: true }))

const OPTIONS: DataLoaderOptions = { batchSize: 4, transform: { mode: 'train', size: 32 }, seed: 5, workers: 2 }

interface Seen {
  indices: number[]
  bytes: string
}

async function take(loader: ImageLoader, limit = Number.POSITIVE_INFINITY): Promise<Seen[]> {
  const seen: Seen[] = []
  for await (const batch of loader.epoch()) {
    seen.push({ indices: [...batch.indices], bytes: Buffer.from(batch.bytes()).toString('base64') })
    if (seen.length === limit) break
  }
  return seen
}

describe('a loader', () => {
  it('goes through every image once an epoch, in another order each', async () => {
    await using loader = data.loader(OPTIONS)
    const first = await take(loader)
    const second = await take(loader)
    for (const epoch of [first, second]) {
      expect(epoch.flatMap((b) => b.indices).sort((a, b) => a - b)).toEqual([...Array(21).keys()])
    }
    expect(second).not.toEqual(first)
    expect(loader.state()).toEqual({ epoch: 2, sample: 0, seed: 5 })
    expect(loader.batches).toBe(6)
  })

  it('gives the same batches whatever the workers and the prefetch', async () => {
    await using a = data.loader(OPTIONS)
    await using b = data.loader({ ...OPTIONS, workers: 1, prefetch: 1 })
    expect(await take(b)).toEqual(await take(a))
  })

  it('continues at any sample as if it had never stopped', async () => {
    await using whole = data.loader(OPTIONS)
    const all = [...(await take(whole)), ...(await take(whole))]
    await using first = data.loader(OPTIONS)
    const before = await take(first, 2)
    const state = first.state()
    expect(state).toEqual({ epoch: 0, sample: 8, seed: 5 })
    await using second = data.loader(OPTIONS)
    second.load(state)
    const after = [...(await take(second)), ...(await take(second))]
    expect([...before, ...after]).toEqual(all)
  })

  it('leaves the incomplete batch out when asked, and pads it otherwise', async () => {
    await using dropping = data.loader({ ...OPTIONS, dropLast: true })
    expect((await take(dropping)).map((b) => b.indices.length)).toEqual([4, 4, 4, 4, 4])
    await using loader = data.loader({ ...OPTIONS, transform: { mode: 'eval', size: 32 } })
    const batches = await take(loader)
    expect(batches.at(-1)!.indices).toEqual([20])
    const bytes = Buffer.from(batches.at(-1)!.bytes, 'base64')
    const labels = new Int32Array(bytes.buffer.slice(bytes.byteOffset + 4 * 32 * 32 * 3), 0, 4)
    expect([...labels]).toEqual([2, -1, -1, -1])
  })

  it('skips and lists what cannot be read, up to its limit', async () => {
    const dir = await makeData(path.join(root, 'bad'), { train: 3, val: 1, side: 40 })
    for (const name of ['blue/001.jpg', 'red/002.jpg']) writeFileSync(path.join(dir, 'train', name), 'x')
    const bad = await imageFolder(dir, { split: 'train' })
    await using loader = bad.loader({ ...OPTIONS, batchSize: 2 })
    const seen = (await take(loader)).flatMap((b) => b.indices)
    expect(seen.length).toBe(7)
    await take(loader)
    expect(loader.badFiles.map((b) => path.relative(dir, b.path)).sort()).toEqual(['train/blue/001.jpg', 'train/red/002.jpg'])
    await using strict = bad.loader({ ...OPTIONS, batchSize: 2, maxBad: 1 })
    await expect(take(strict)).rejects.toThrow(expect.objectContaining({ code: 'EFF_DATA_DECODE' }))
  })

  it('ends cleanly when it is left or closed', async () => {
    const loader = data.loader(OPTIONS)
    await take(loader, 1)
    await take(loader, 1)
    const epoch = loader.epoch()
    await epoch.next()
    loader.close()
    loader.close()
    await expect(epoch.next()).rejects.toThrow(expect.objectContaining({ code: 'EFF_CLOSED' }))
  })

  it('of nothing, or of less than a batch, is refused', () => {
    expect(() => data.take(0).loader(OPTIONS)).toThrow(expect.objectContaining({ code: 'EFF_DATA_EMPTY' }))
    expect(() => data.take(2).loader({ ...OPTIONS, dropLast: true })).toThrow(expect.objectContaining({ code: 'EFF_DATA_EMPTY' }))
  })
})

describe('formats other than JPEG', () => {
  const raw = { width: 6, height: 4, channels: 3 } as const
  const rgb = Uint8Array.from({ length: 72 }, (_, i) => i * 3)

  it.each(['png', 'webp', 'tiff', 'gif', 'avif'] as const)('%s becomes RGB', async (format) => {
    const lossless = {
      png: {},
      webp: { lossless: true },
      tiff: { compression: 'lzw' },
      gif: {},
      avif: { lossless: true },
    } as const
    const bytes = await sharp(rgb, { raw }).toFormat(format, lossless[format]).toBuffer()
    const image = await decodeOther(bytes, 'image')
    expect([image.width, image.height, image.data.length]).toEqual([6, 4, 72])
    if (format === 'png' || format === 'tiff') expect([...image.data]).toEqual([...rgb])
  })

  it('gray and 16 bits become 8-bit RGB, alpha is dropped', async () => {
    const gray = await sharp(
      Uint8Array.from({ length: 24 }, (_, i) => i * 10),
      { raw: { ...raw, channels: 1 } },
    )
      .png()
      .toBuffer()
    expect([...(await decodeOther(gray, 'gray')).data].slice(0, 6)).toEqual([0, 0, 0, 10, 10, 10])
    const alpha = await sharp(rgb, { raw }).ensureAlpha(0.5).png().toBuffer()
    expect([...(await decodeOther(alpha, 'alpha')).data]).toEqual([...rgb])
  })

  it('what is too large or no image is refused', async () => {
    const bytes = await sharp(rgb, { raw }).png().toBuffer()
    await expect(decodeOther(bytes, 'a.png', { maxPixels: 23 })).rejects.toThrow(
      expect.objectContaining({ code: 'EFF_DATA_LIMIT' }),
    )
    await expect(decodeOther(bytes.subarray(0, 60), 'a.png')).rejects.toThrow(/a\.png: /)
    await expect(decodeOther(Buffer.alloc(0), 'a.png')).rejects.toThrow(/the file is empty/)
  })
})
