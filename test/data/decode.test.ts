/** Images through the addon against Pillow. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import sharp from 'sharp'
import { describe, expect, it } from 'vitest'
import { binding, type DecodeOptions } from '../../ts/binding.js'
import { readImage } from '../../ts/data/decode.js'
import { EffnetError } from '../../ts/errors.js'
import { fixture, IO_FIXTURES, mean, sha256, TEST_DATA, table } from './helpers/fixtures.js'

const FULL: DecodeOptions = { mode: 'full', size: 1, exifOrientation: false }

describe('decodeJpeg', () => {
  it('gives the pixels of Pillow, stored and upright', async () => {
    for (const [name, width, height, stored, upright] of table(path.join(IO_FIXTURES, 'jpeg.tsv'))) {
      const image = await binding().decodeJpeg(fixture(name!), FULL)
      expect([name, image.width, image.height]).toEqual([name, Number(width), Number(height)])
      expect(sha256(image.data), name).toBe(stored)
      const turned = await binding().decodeJpeg(fixture(name!), { ...FULL, exifOrientation: true })
      expect(sha256(turned.data), name).toBe(upright)
    }
  })

  it('evaluates as Pillow: resize of the short side, centre crop', async () => {
    for (const [name, resizeTo, size, filter, expected] of table(path.join(IO_FIXTURES, 'eval.tsv'))) {
      const options = {
        mode: 'eval',
        size: Number(size),
        resizeTo: Number(resizeTo),
        interpolation: filter as 'bicubic',
      } as const
      const image = await binding().decodeJpeg(fixture(name!), options)
      expect(sha256(image.data), `${name} ${resizeTo} ${filter}`).toBe(expected)
      const upright = await binding().decodeJpeg(fixture(name!), { mode: 'full', size: 1 })
      const fromPixels = await binding().transformPixels(upright, options)
      expect(sha256(fromPixels.data)).toBe(expected)
    }
  })

  it('trains by seed, epoch and index alone', async () => {
    const options: DecodeOptions = { mode: 'train', size: 32, scaleMin: 0.35, seed: 3, epoch: 1, index: 7 }
    const draw = async (change: Partial<DecodeOptions>) =>
      sha256((await binding().decodeJpeg(fixture('large.jpg'), { ...options, ...change })).data)
    const first = await draw({})
    expect(await draw({})).toBe(first)
    for (const change of [{ seed: 4 }, { epoch: 2 }, { index: 8 }]) expect(await draw(change)).not.toBe(first)
  })

  it('reads its own copy of the bytes', async () => {
    const bytes = new Uint8Array(fixture('420.jpg'))
    const pending = binding().decodeJpeg(bytes, FULL)
    bytes.fill(0)
    expect(sha256((await pending).data)).toBe(table(path.join(IO_FIXTURES, 'jpeg.tsv'))[0]![3])
  })

  it.each([
    ['a file cut short', () => fixture('420.jpg').subarray(0, 1500), {}, 'EFF_DATA_DECODE', /ends early at byte 1500/],
    ['no bytes', () => Buffer.alloc(0), {}, 'EFF_DATA_DECODE', /empty/],
    ['a PNG', () => Buffer.from('89504e470d0a1a0a0000', 'hex'), {}, 'EFF_DATA_DECODE', /PNG, not a JPEG/],
    [
      'too many pixels',
      () => fixture('420.jpg'),
      { maxPixels: 5916 },
      'EFF_DATA_LIMIT',
      /97x61 = 5917 pixels, the limit is 5916/,
    ],
  ] as const)('%s: %s', async (_what, bytes, change, code, message) => {
    const failure = await binding()
      .decodeJpeg(bytes(), { ...FULL, ...change })
      .catch((e: unknown) => e)
    expect(failure).toBeInstanceOf(EffnetError)
    expect((failure as EffnetError).code).toBe(code)
    expect((failure as EffnetError).message).toMatch(message)
  })

  it.each([
    { mode: 'evaluate' },
    { mode: 'eval', size: 0 },
    { mode: 'eval', size: 64, resizeTo: 63 },
    { mode: 'eval', size: 64, interpolation: 'nearest' },
    { mode: 'train', size: 64, scaleMin: 0.9, scaleMax: 0.1 },
    { mode: 'train', size: 64, hflip: Number.NaN },
    { mode: 'train', size: 64, seed: -1 },
  ])('refuses %j', (options) => {
    expect(() => binding().decodeJpeg(fixture('420.jpg'), options as DecodeOptions)).toThrowError(
      expect.objectContaining({ code: 'EFF_INVALID_ARGUMENT' }),
    )
  })

  it('refuses pixels that do not fit their size', () => {
    expect(() => binding().transformPixels({ width: 2, height: 2, data: new Uint8Array(11) }, FULL)).toThrowError(
      /12 bytes, not 11/,
    )
  })
})

/** All of them files that sharp reads. */
const NOT_AS_PILLOW = [
  // sharp's libvips has no BMP reader.
  'other-hopper.bmp: refused',
  // The bomb is a text chunk, which nobody unpacks here; the pixels are sound.
  'other-png_decompression_dos.png: accepted',
  // Colours of fully transparent pixels: the palette's in Pillow, black in libvips.
  'other-transparent.gif: other mean',
]

describe.skipIf(!TEST_DATA)('real images (EFFNET_TEST_DATA)', () => {
  it('resize and crop equal the lossless reference crops exactly', async () => {
    const labels = table(path.join(TEST_DATA!, 'imagenet-samples/labels.tsv'))
    for (const name of ['0133_n02011460', '0413_n02749479', '0873_n04486054']) {
      const file = labels.map((row) => row[0]!).find((f) => f.includes(name))!
      const bytes = readFileSync(path.join(TEST_DATA!, 'imagenet-samples/images', file))
      const image = await binding().decodeJpeg(bytes, { mode: 'eval', size: 224, resizeTo: 256 })
      const png = await sharp(path.join(TEST_DATA!, `reference/${name}.224.png`))
        .removeAlpha()
        .toColourspace('srgb')
        .raw()
        .toBuffer()
      expect(Buffer.compare(Buffer.from(image.data), png), name).toBe(0)
    }
  })

  // JPEG: size as in the table, mean within its rounding. Others through sharp; where it differs from Pillow is named.
  it('every file of the torture set is read as the table says, or refused', async () => {
    const rows = table(path.join(TEST_DATA!, 'jpeg-torture/index.tsv'))
    const column = (name: string) => rows[0]!.indexOf(name)
    const differences: string[] = []
    for (const row of rows.slice(1)) {
      const name = row[column('file')]!
      const expected = row[column('pillow_rgb')]!
      const file = path.join(TEST_DATA!, 'jpeg-torture', name)
      const result = await readImage(file, FULL).catch((e: EffnetError) => e)
      if (result instanceof Error) {
        expect(result, name).toBeInstanceOf(EffnetError)
        expect(['EFF_DATA_DECODE', 'EFF_DATA_LIMIT'], name).toContain(result.code)
        if (!expected.startsWith('ERR')) differences.push(`${name}: refused`)
        continue
      }
      const size = `${result.width}x${result.height}x3`
      const off = Math.abs(mean(result.data) - Number(row[column('pillow_mean')]))
      if (expected.startsWith('ERR')) differences.push(`${name}: accepted`)
      else if (size !== expected) differences.push(`${name}: ${size}`)
      else if (!(off <= (row[column('category')] === 'other' ? 0.5 : 0.0051))) differences.push(`${name}: other mean`)
    }
    expect(differences.sort()).toEqual(NOT_AS_PILLOW)
  })
})
