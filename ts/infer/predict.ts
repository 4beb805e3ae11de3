/** Predictions and embeddings: images are decoded a batch ahead of the network; an unreadable one gives an error in its place. */

import { setImmediate } from 'node:timers/promises'
import type { DecodeOptions } from '../binding.js'
import { DEFAULT_MAX_PIXELS, inputPath, readImage } from '../data/decode.js'
import type { ImageInput } from '../data/types.js'
import { EffnetError } from '../errors.js'
import type { Model } from '../model.js'
import { evalGeometry } from '../nn/index.js'
import { checkKeys } from '../option_keys.js'
import type { EvalResult } from '../runtime/session.js'
import { argmax, logSumExp } from '../train/metrics.js'
import type {
  ClassScore,
  Embedding,
  EmbedOptions,
  Prediction,
  PredictionError,
  PredictionResult,
  PredictOptions,
} from './types.js'

const DEFAULT_BATCH = 32
const DEFAULT_TOP_K = 5
const ALIGN = 64
/** Bytes copied between two turns of the event loop: well under a millisecond. */
const COPY_SLICE = 1 << 20
/** Images decoded at once: enough for every CPU, few enough for the limit of open files and for memory. */
const DECODES = 32

const EMBED_KEYS = {
  batchSize: true,
  imageSize: true,
  cropPct: true,
  interpolation: true,
  exifOrientation: true,
  maxPixels: true,
  signal: true,
} as const satisfies Record<keyof EmbedOptions, true>
const PREDICT_KEYS = { ...EMBED_KEYS, topK: true, logits: true } as const satisfies Record<keyof PredictOptions, true>

/** Codes that belong to one image; anything else ends the call. */
const OF_IMAGE = new Set(['EFF_DATA_DECODE', 'EFF_DATA_LIMIT', 'EFF_DATA_MISSING', 'EFF_IO', 'EFF_INVALID_ARGUMENT'])

interface Decoded {
  path: string | undefined
  pixels?: Uint8Array
  error?: PredictionError['error']
}

const aligned = (bytes: number): number => Math.ceil(bytes / ALIGN) * ALIGN

/** A plan's input arena without labels (-1): images [batch, size, size, 3], labels int32 at the next multiple of 64, end at one. */
function inputBytes(batch: number, size: number): Uint8Array {
  const labelsAt = aligned(batch * size * size * 3)
  const bytes = new Uint8Array(aligned(labelsAt + batch * 4))
  new Int32Array(bytes.buffer, labelsAt, batch).fill(-1)
  return bytes
}

/** The k best classes with their softmax probabilities; the smaller index wins a tie. */
export function topClasses(
  logits: Float32Array,
  start: number,
  count: number,
  k: number,
  labels?: readonly string[],
): ClassScore[] {
  const norm = logSumExp(logits, start, count)
  const best: number[] = []
  if (k === 1) best.push(argmax(logits, start, count))
  else if (k > 32) {
    const all = Array.from({ length: count }, (_, i) => i)
    best.push(...all.sort((a, b) => logits[start + b]! - logits[start + a]! || a - b).slice(0, k))
  } else {
    for (let i = 0; i < count; i++) {
      const value = logits[start + i]!
      if (best.length === k && value <= logits[start + best[k - 1]!]!) continue
      let at = best.length
      while (at > 0 && value > logits[start + best[at - 1]!]!) at--
      best.splice(at, 0, i)
      if (best.length > k) best.pop()
    }
  }
  return best.map((index) => {
    const label = labels?.[index]
    return { index, ...(label === undefined ? {} : { label }), score: Math.exp(logits[start + index]! - norm) }
  })
}

function evalDecode(model: Model, o: EmbedOptions): DecodeOptions {
  const { config } = model
  const size = o.imageSize ?? config.evalSize
  // As for models and training: below, blocks have no pixels left.
  if (!(Number.isInteger(size) && size >= 32 && size <= 4096)) {
    throw new EffnetError('EFF_INVALID_ARGUMENT', `imageSize must be a whole number from 32 to 4096, not ${size}`)
  }
  return {
    mode: 'eval',
    size,
    ...evalGeometry(config, size, o.cropPct),
    interpolation: o.interpolation ?? config.preprocessing.interpolation,
    exifOrientation: o.exifOrientation ?? config.preprocessing.exifOrientation,
    maxPixels: o.maxPixels ?? DEFAULT_MAX_PIXELS,
  }
}

async function decodeOne(input: ImageInput, options: DecodeOptions): Promise<Decoded> {
  let path = input instanceof URL ? input.href : undefined
  try {
    path = inputPath(input)
    return { path, pixels: (await readImage(input, options)).data }
  } catch (cause) {
    if (cause instanceof EffnetError && OF_IMAGE.has(cause.code)) {
      return { path, error: { code: cause.code, message: cause.message } }
    }
    throw cause
  }
}

/** `work` of each item, at most `limit` at once, in order. */
async function mapLimited<T, R>(items: readonly T[], limit: number, work: (item: T) => Promise<R>): Promise<R[]> {
  const results = new Array<R>(items.length)
  let next = 0
  const worker = async (): Promise<void> => {
    for (let i = next++; i < items.length; i = next++) results[i] = await work(items[i]!)
  }
  await Promise.all(Array.from({ length: Math.min(limit, items.length) }, worker))
  return results
}

async function* chunks<T>(items: Iterable<T> | AsyncIterable<T>, size: number): AsyncGenerator<T[]> {
  let chunk: T[] = []
  for await (const item of items) {
    chunk.push(item)
    if (chunk.length < size) continue
    yield chunk
    chunk = []
  }
  if (chunk.length > 0) yield chunk
}

/** Runs batches of one call. Inputs are kept from batch to batch: fresh memory costs more than the copy into it. */
class BatchRunner {
  private readonly inputs = new Map<number, Uint8Array>()

  constructor(
    private readonly model: Model,
    private readonly size: number,
    private readonly limit: number,
  ) {}

  /** Undefined where no image could be read. One at a time: the input is in use until it resolves. */
  async run(images: readonly Decoded[]): Promise<EvalResult | undefined> {
    const { size } = this
    const good = images.filter((d) => d.pixels !== undefined)
    if (good.length === 0) return undefined
    const { plans } = this.model
    const batch = plans.batchFor(good.length, size, this.limit)
    const bytes = this.inputs.get(batch) ?? inputBytes(batch, size)
    this.inputs.set(batch, bytes)
    const imageBytes = size * size * 3
    let copied = 0
    for (const [i, d] of good.entries()) {
      bytes.set(d.pixels!, i * imageBytes)
      copied += imageBytes
      if (copied < COPY_SLICE) continue
      copied = 0
      await setImmediate()
    }
    return plans.run(batch, size, { bytes })
  }
}

const NOT_FINITE = { code: 'EFF_NAN', message: 'the network gave NaN or infinity: its weights are not sound' } as const

/** Yields for each input, in order, what `make` makes of the batch's output at its row, or its error. */
async function* run<T>(
  model: Model,
  inputs: Iterable<ImageInput> | AsyncIterable<ImageInput>,
  o: EmbedOptions,
  make: (output: EvalResult, row: number, path: string | undefined) => T,
): AsyncGenerator<T | PredictionError> {
  const classes = model.config.numClasses
  const decode = evalDecode(model, o)
  const limit = o.batchSize ?? DEFAULT_BATCH
  if (!(Number.isInteger(limit) && limit > 0)) {
    throw new EffnetError('EFF_INVALID_ARGUMENT', `batchSize must be a whole number above 0, not ${limit}`)
  }
  const source = chunks(inputs, limit)
  const fetch = async (): Promise<Decoded[] | undefined> => {
    const next = await source.next()
    if (next.done) return undefined
    return mapLimited(next.value, DECODES, (input) => decodeOne(input, decode))
  }
  const runner = new BatchRunner(model, decode.size, limit)
  let ahead = fetch()
  try {
    for (;;) {
      checkAborted(o.signal)
      const images = await ahead
      if (images === undefined) return
      ahead = fetch()
      // Awaited in the next turn of the loop; a failure meanwhile must not count as unhandled.
      ahead.catch(() => undefined)
      const output = await runner.run(images)
      let row = 0
      for (const image of images) {
        if (image.error) yield withPath(image.path, { error: image.error })
        else {
          const finite = output!.logits.subarray(row * classes, (row + 1) * classes).every(Number.isFinite)
          const made = make(output!, row++, image.path)
          yield finite ? made : withPath(image.path, { error: NOT_FINITE })
        }
      }
    }
  } finally {
    await ahead.catch(() => undefined)
    await source.return(undefined)
  }
}

const withPath = <T extends object>(path: string | undefined, value: T): T => (path === undefined ? value : { path, ...value })

function checkAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new EffnetError('EFF_ABORTED', 'the call was aborted', { cause: signal.reason })
}

/** Results in input order, as they come; for any number of images. */
export function predictStream(
  model: Model,
  inputs: Iterable<ImageInput> | AsyncIterable<ImageInput>,
  o: PredictOptions = {},
): AsyncGenerator<PredictionResult> {
  checkKeys('predict', o, PREDICT_KEYS)
  const classes = model.config.numClasses
  const k = o.topK ?? Math.min(DEFAULT_TOP_K, classes)
  if (!(Number.isInteger(k) && k > 0)) {
    throw new EffnetError('EFF_INVALID_ARGUMENT', `topK must be a whole number above 0, not ${k}`)
  }
  return run<Prediction>(model, inputs, o, (output, row, path) => {
    const start = row * classes
    const topk = topClasses(output.logits, start, classes, Math.min(k, classes), model.classes)
    return withPath(path, { topk, ...(o.logits ? { logits: output.logits.slice(start, start + classes) } : {}) })
  })
}

export function embedStream(
  model: Model,
  inputs: Iterable<ImageInput> | AsyncIterable<ImageInput>,
  o: EmbedOptions = {},
): AsyncGenerator<Embedding | PredictionError> {
  checkKeys('embed', o, EMBED_KEYS)
  return run<Embedding>(model, inputs, o, (output, row, path) => {
    const width = model.config.head
    return withPath(path, { features: output.features.slice(row * width, (row + 1) * width) })
  })
}

/** @throws EFF_INVALID_ARGUMENT where there is none */
export function asList(images: ImageInput | readonly ImageInput[] | undefined): readonly ImageInput[] {
  if (images === undefined || images === null) {
    throw new EffnetError('EFF_INVALID_ARGUMENT', 'no images were given', {
      hint: "model.predict('photo.jpg'), or a list of them",
    })
  }
  return Array.isArray(images) ? (images as readonly ImageInput[]) : [images as ImageInput]
}

export async function collect<T>(results: AsyncGenerator<T>): Promise<T[]> {
  const all: T[] = []
  for await (const result of results) all.push(result)
  return all
}
