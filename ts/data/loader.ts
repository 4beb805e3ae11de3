/**
 * Batches of a dataset from the native pipeline: order and augmentation depend on (seed, epoch, position) only, so a
 * position is all that a resume needs.
 */
import { type BatchHandle, binding, type LoaderBatch, type LoaderHandle } from '../binding.js'
import { EffnetError } from '../errors.js'
import { decodeOptions, decodeOther } from './decode.js'
import { permutation, sequence } from './order.js'
import type { BadFile, DataLoaderOptions, ImageBatch, ImageDataset, ImageLoader, LoaderState } from './types.js'

const MAX_WORKERS = 16
const DEFAULT_PREFETCH = 3
const BAD_FRACTION = 0.001
const BAD_AT_LEAST = 10

/** Unreadable files allowed before the loader gives up. */
export function badLimit(files: number, maxBad?: number): number {
  if (maxBad === undefined) return Math.max(BAD_AT_LEAST, Math.floor(files * BAD_FRACTION))
  if (!(maxBad >= 0)) throw new EffnetError('EFF_INVALID_ARGUMENT', `maxBad must be 0 or more, not ${maxBad}`)
  return maxBad < 1 ? Math.floor(files * maxBad) : Math.floor(maxBad)
}

export const defaultWorkers = (): number => Math.min(MAX_WORKERS, binding().cpuInfo().cpus)

export class NativeBatch implements ImageBatch {
  private released = false

  constructor(
    private readonly inner: LoaderBatch,
    readonly nextSample: number,
  ) {}

  get handle(): BatchHandle {
    if (this.released) throw new EffnetError('EFF_CLOSED', 'the batch was released')
    return this.inner.batch
  }

  get count(): number {
    return this.inner.count
  }

  get indices(): Uint32Array {
    return this.inner.indices
  }

  bytes(): Uint8Array {
    return binding().readBatch(this.handle)
  }

  release(): void {
    if (this.released) return
    this.released = true
    binding().releaseBatch(this.inner.batch)
  }
}

export function createImageLoader(dataset: ImageDataset, options: DataLoaderOptions): NativeImageLoader {
  return new NativeImageLoader(dataset, options)
}

export class NativeImageLoader implements ImageLoader {
  readonly batchSize: number
  readonly batches: number
  private readonly handle: LoaderHandle
  private readonly shuffle: boolean
  private readonly dropLast: boolean
  private readonly limit: number
  private readonly bad = new Map<string, BadFile>()
  private position: LoaderState
  private closed = false
  private running = false

  constructor(
    private readonly dataset: ImageDataset,
    options: DataLoaderOptions,
  ) {
    if (dataset.length === 0) throw new EffnetError('EFF_DATA_EMPTY', `${dataset.root}: no images`)
    if (!(Number.isInteger(options.batchSize) && options.batchSize > 0)) {
      throw new EffnetError('EFF_INVALID_ARGUMENT', `batchSize must be a whole number above 0, not ${options.batchSize}`)
    }
    this.batchSize = options.batchSize
    this.shuffle = options.shuffle ?? options.transform.mode === 'train'
    this.dropLast = options.dropLast ?? false
    this.batches = this.dropLast ? Math.floor(dataset.length / this.batchSize) : Math.ceil(dataset.length / this.batchSize)
    if (this.batches === 0) {
      throw new EffnetError('EFF_DATA_EMPTY', `${dataset.root}: ${dataset.length} images make no batch of ${this.batchSize}`, {
        hint: `a batch size of at most ${dataset.length}`,
      })
    }
    this.limit = badLimit(dataset.length, options.maxBad)
    this.position = { epoch: 0, sample: 0, seed: options.seed ?? 0 }
    const decode = decodeOptions(options.transform)
    this.handle = binding().createLoader({
      files: dataset.files,
      labels: dataset.labels,
      batchSize: this.batchSize,
      decode,
      workers: options.workers ?? defaultWorkers(),
      prefetch: options.prefetch ?? DEFAULT_PREFETCH,
      decodeOther: (bytes, name) => decodeOther(bytes, name, decode),
    })
  }

  get badFiles(): readonly BadFile[] {
    return [...this.bad.values()]
  }

  async *epoch(): AsyncGenerator<NativeBatch, void, undefined> {
    if (this.running) throw new EffnetError('EFF_INVALID_ARGUMENT', 'the loader already runs an epoch')
    this.running = true
    let current: NativeBatch | undefined
    try {
      const { epoch, seed } = this.position
      const order = this.shuffle ? await permutation(this.dataset.length, seed, epoch) : sequence(this.dataset.length)
      this.open()
      const native = binding()
      native.loaderStart(this.handle, order, this.position.sample, epoch, seed, this.dropLast)
      for (;;) {
        const inner = await native.loaderNext(this.handle)
        this.open()
        if (inner === null) break
        this.note(inner)
        if (inner.count === 0) {
          // The epoch's last files were unreadable.
          native.releaseBatch(inner.batch)
          continue
        }
        const nextSample = positionAfter(order, this.position.sample, inner)
        this.position = { epoch, sample: nextSample, seed }
        current = new NativeBatch(inner, nextSample)
        yield current
        current.release()
      }
      this.position = { epoch: epoch + 1, sample: 0, seed }
    } finally {
      this.running = false
      if (!this.closed) current?.release()
    }
  }

  state(): LoaderState {
    return { ...this.position }
  }

  load(state: LoaderState): void {
    if (this.running) throw new EffnetError('EFF_INVALID_ARGUMENT', 'a state is loaded between epochs, not while one runs')
    this.position = { epoch: state.epoch, sample: state.sample, seed: state.seed }
  }

  close(): void {
    if (this.closed) return
    this.closed = true
    binding().closeLoader(this.handle)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close()
  }

  private open(): void {
    if (this.closed) throw new EffnetError('EFF_CLOSED', 'the loader was closed')
  }

  private note(batch: LoaderBatch): void {
    for (const bad of batch.bad) {
      const file = this.dataset.files[bad.index]!
      this.bad.set(file, { path: file, code: bad.code, message: bad.message })
    }
    if (this.bad.size <= this.limit) return
    const list = this.badFiles
    const first = list[0]!
    throw new EffnetError(
      'EFF_DATA_DECODE',
      `${list.length} of ${this.dataset.length} images in ${this.dataset.root} cannot be read (limit ${this.limit}); the first: ${first.message.includes(first.path) ? '' : `${first.path}: `}${first.message}`,
      {
        hint: 'remove or replace the files (a run folder lists them in bad_files.csv), or raise maxBad',
        details: { badFiles: list },
      },
    )
  }
}

/** Where the order continues after a batch: behind its last sample. Bad files in front of it were passed over. */
function positionAfter(order: Uint32Array, from: number, batch: LoaderBatch): number {
  const last = batch.indices[batch.count - 1]
  for (let i = from + batch.count - 1; i < order.length; i++) if (order[i] === last) return i + 1
  throw new EffnetError('EFF_INTERNAL', 'a batch holds a sample that is not ahead in the order')
}
