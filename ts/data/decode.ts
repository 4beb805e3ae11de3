/** One image to pixels: JPEG by our decoder, everything else by sharp where it is installed. */
import { readFile, stat } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { binding, type DecodedImage, type DecodeOptions } from '../binding.js'
import { EffnetError } from '../errors.js'
import type { EvalTransform, ImageInput, RawImage, TrainTransform } from './types.js'

/** Pillow's limit before it speaks of a decompression bomb, doubled there to an error. */
export const DEFAULT_MAX_PIXELS = 178_956_970
export const DEFAULT_CROP_PCT = 0.875

type Sharp = typeof import('sharp')['default']

let sharpModule: Promise<Sharp | undefined> | undefined

const loadSharp = (): Promise<Sharp | undefined> => {
  sharpModule ??= import('sharp').then(
    (m) => m.default as Sharp,
    () => undefined,
  )
  return sharpModule
}

export const isJpeg = (bytes: Uint8Array): boolean => bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff

/**
 * Decodes PNG, WebP and what else sharp reads to RGB; alpha is dropped, 16 bits become 8, of an animation the first frame is taken.
 * @throws EFF_DATA_DECODE when sharp is missing or cannot read it; EFF_DATA_LIMIT above `maxPixels`
 */
export async function decodeOther(
  bytes: Uint8Array,
  name: string,
  options: { exifOrientation?: boolean; maxPixels?: number } = {},
): Promise<DecodedImage> {
  if (bytes.length === 0) throw new EffnetError('EFF_DATA_DECODE', `${name}: the file is empty`)
  if (bytes[0] === 0x42 && bytes[1] === 0x4d) {
    throw new EffnetError('EFF_DATA_DECODE', `${name}: BMP is not read`, { hint: 'convert it to PNG or JPEG' })
  }
  const sharp = await loadSharp()
  if (sharp === undefined) {
    throw new EffnetError(
      'EFF_DATA_DECODE',
      `${name}: not a JPEG, and the package sharp that reads other formats is not installed`,
      {
        hint: 'npm install sharp',
      },
    )
  }
  const maxPixels = options.maxPixels ?? DEFAULT_MAX_PIXELS
  try {
    const source = sharp(bytes, { failOn: 'error', limitInputPixels: false, animated: false })
    const meta = await source.metadata()
    if (meta.width * meta.height > maxPixels) {
      throw new EffnetError(
        'EFF_DATA_LIMIT',
        `${name}: ${meta.width} x ${meta.height} pixels are more than the limit of ${maxPixels}`,
        {
          hint: 'raise maxPixels if the image is meant',
        },
      )
    }
    const oriented = (options.exifOrientation ?? true) ? source.autoOrient() : source
    const { data, info } = await oriented
      .toColourspace('srgb')
      .removeAlpha()
      .raw({ depth: 'uchar' })
      .toBuffer({ resolveWithObject: true })
    return toRgb({ data, width: info.width, height: info.height, channels: info.channels as 1 | 3 | 4 }, name)
  } catch (cause) {
    if (cause instanceof EffnetError) throw cause
    const said = (cause as Error).message.split('\n')[0]!
    const why = /unsupported image format/.test(said) ? 'not an image, or of a format that is not read' : said
    throw new EffnetError('EFF_DATA_DECODE', `${name}: ${why}`, { cause })
  }
}

/** @throws EFF_INVALID_ARGUMENT when size and channels do not fit the data */
export function toRgb(image: RawImage, name = 'image'): DecodedImage {
  const { data, width, height } = image
  const channels = image.channels ?? 3
  if (!(Number.isInteger(width) && Number.isInteger(height) && width > 0 && height > 0)) {
    throw new EffnetError(
      'EFF_INVALID_ARGUMENT',
      `${name}: width and height must be whole numbers above 0, not ${width} x ${height}`,
    )
  }
  if (![1, 3, 4].includes(channels) || data.length !== width * height * channels) {
    throw new EffnetError(
      'EFF_INVALID_ARGUMENT',
      `${name}: ${width} x ${height} x ${channels} needs ${width * height * channels} bytes, got ${data.length}`,
    )
  }
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
  if (channels === 3) return { width, height, data: bytes }
  const rgb = new Uint8Array(width * height * 3)
  for (let i = 0, o = 0; o < rgb.length; i += channels, o += 3) {
    rgb[o] = bytes[i]!
    rgb[o + 1] = channels === 1 ? bytes[i]! : bytes[i + 1]!
    rgb[o + 2] = channels === 1 ? bytes[i]! : bytes[i + 2]!
  }
  return { width, height, data: rgb }
}

export function decodeOptions(transform: EvalTransform | TrainTransform): DecodeOptions {
  const common = {
    size: transform.size,
    interpolation: transform.interpolation ?? 'bicubic',
    exifOrientation: transform.exifOrientation ?? true,
    maxPixels: transform.maxPixels ?? DEFAULT_MAX_PIXELS,
  } as const
  if (transform.mode === 'eval') {
    const resizeTo = transform.resizeTo ?? Math.round(transform.size / DEFAULT_CROP_PCT)
    return { ...common, mode: 'eval', resizeTo, squash: transform.squash ?? false }
  }
  const [scaleMin, scaleMax] = transform.scale ?? [0.35, 1]
  const [ratioMin, ratioMax] = transform.ratio ?? [3 / 4, 4 / 3]
  return { ...common, mode: 'train', scaleMin, scaleMax, ratioMin, ratioMax, hflip: transform.hflip ?? 0.5 }
}

/** The path an input names, for results and messages. @throws EFF_INVALID_ARGUMENT for a URL that is of no file here */
export function inputPath(input: ImageInput): string | undefined {
  if (!(input instanceof URL)) return typeof input === 'string' ? input : undefined
  try {
    return fileURLToPath(input)
  } catch (cause) {
    throw new EffnetError('EFF_INVALID_ARGUMENT', `${input.href}: images are read from files (file: URLs) alone`, {
      hint: 'fetch it, and give the bytes as a Uint8Array',
      cause,
    })
  }
}

/**
 * Pixels of one image after the transform, [size, size, 3].
 * @throws EFF_DATA_MISSING no such file; EFF_DATA_DECODE, EFF_DATA_LIMIT
 */
export async function readImage(input: ImageInput, options: DecodeOptions): Promise<DecodedImage> {
  const native = binding()
  const file = inputPath(input)
  if (file === undefined && (typeof input !== 'object' || input === null)) {
    throw new EffnetError('EFF_INVALID_ARGUMENT', `an image is a path, bytes or pixels, not ${String(input)}`)
  }
  if (file === undefined && !(input instanceof Uint8Array)) {
    return native.transformPixels(toRgb(input as RawImage), options)
  }
  const bytes = file === undefined ? (input as Uint8Array) : await readBytes(file)
  if (isJpeg(bytes)) {
    try {
      return await native.decodeJpeg(bytes, options)
    } catch (cause) {
      if (cause instanceof EffnetError && file !== undefined && !cause.message.includes(file)) {
        throw new EffnetError(cause.code, `${file}: ${cause.message}`, { cause, ...(cause.hint ? { hint: cause.hint } : {}) })
      }
      throw cause
    }
  }
  const pixels = await decodeOther(bytes, file ?? 'image', options)
  return native.transformPixels(pixels, options)
}

async function readBytes(file: string): Promise<Uint8Array> {
  try {
    const found = await stat(file)
    // A pipe or a device may never end.
    if (!found.isFile()) throw new EffnetError('EFF_DATA_DECODE', `${file}: not a file`)
    return await readFile(file)
  } catch (cause) {
    if (cause instanceof EffnetError) throw cause
    const code = (cause as NodeJS.ErrnoException).code
    if (code === 'ENOENT') {
      const unnamed = file.includes('\ufffd') ? ' (its name is not UTF-8: rename it)' : ''
      throw new EffnetError('EFF_DATA_MISSING', `${file}: no such file${unnamed}`, { cause })
    }
    throw new EffnetError('EFF_IO', `${file}: ${(cause as Error).message}`, { cause })
  }
}
