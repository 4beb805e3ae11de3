/**
 * Batches of a dataset from the native pipeline: order and augmentation depend on (seed, epoch, position) only, so a
 * position is all that a resume needs.
 */
import {
  type BatchHandle,
  binding,
  type DeviceHandle,
  type LoaderBatch,
  type LoaderHandle,
  type MemoryHandle,
} from '../binding.js'
import { EffnetError } from '../errors.js'
import { decodeOptions, decodeOther } from './decode.js'
import { permutation, sequence } from './order.js'
import type { BadFile, DataLoaderOptions, ImageBatch, ImageDataset, ImageLoader, LoaderState } from './types.js'

const MAX_WORKERS = 16
export const DEFAULT_PREFETCH = 3
const BAD_FRACTION = 0.001
const BAD_AT_LEAST = 10
/** Without a batch for so long, and a second for each of its images, the disk is taken to be stuck. */
const STALLED_MS = 300_000
const STALLED_IMAGE_MS = 1000

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

export interface NativeLoaderOptions extends DataLoaderOptions {
  /** The GPU that makes the batches; default: they are made on the CPU. */
  device?: DeviceHandle
  /** In whose limit what that takes counts. */
  memory?: MemoryHandle
  /** Who reads batches that are made on the CPU. */
  pageLockedFor?: DeviceHandle
  /** Hears of the first file that the CPU had to decode for the GPU. */
  onCpuDecoded?: ((file: string) => void) | undefined
}

export class NativeImageLoader implements ImageLoader {
  readonly batchSize: number
  readonly batches: number
  private readonly handle: LoaderHandle
  private readonly shuffle: boolean
  private readonly dropLast: boolean
  private readonly limit: number
  private readonly bad = new Map<string, BadFile>()
  private readonly onCpu = new Set<number>()
  private readonly onCpuDecoded: ((file: string) => void) | undefined
  private position: LoaderState
  private closed = false
  private running = false

  constructor(
    private readonly dataset: ImageDataset,
    options: NativeLoaderOptions,
    private readonly stalledMs = STALLED_MS + STALLED_IMAGE_MS * options.batchSize,
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
    this.onCpuDecoded = options.onCpuDecoded
    const decode = decodeOptions(options.transform)
    this.handle = binding().createLoader({
      files: dataset.files,
      labels: dataset.labels,
      batchSize: this.batchSize,
      decode,
      workers: options.workers ?? defaultWorkers(),
      prefetch: options.prefetch ?? DEFAULT_PREFETCH,
      decodeOther: (bytes, name) => decodeOther(bytes, name, decode),
      ...(options.device ? { device: options.device } : {}),
      ...(options.memory ? { memory: options.memory } : {}),
      ...(options.pageLockedFor ? { pageLockedFor: options.pageLockedFor } : {}),
    })
  }

  /** Files that the CPU decoded for a GPU that makes the batches. */
  get cpuDecoded(): number {
    return this.onCpu.size
  }

  get badFiles(): readonly BadFile[] {
    return [...this.bad.values()]
  }

  /**
   * `signal` ends it even while a batch is awaited that never comes; the loader can only be closed then. A batch is given back when
   * the next is asked for, or, `kept`, by whom it was given to.
   * @throws EFF_DATA_STALLED when none came for too long, EFF_DATA_DECODE (too many unreadable files)
   */
  async *epoch(signal?: AbortSignal, { kept = false } = {}): AsyncGenerator<NativeBatch, void, undefined> {
    if (this.running) throw new EffnetError('EFF_INVALID_ARGUMENT', 'the loader already runs an epoch')
    this.running = true
    let lent: NativeBatch | undefined
    try {
      const { epoch, seed } = this.position
      const order = this.shuffle ? await permutation(this.dataset.length, seed, epoch) : sequence(this.dataset.length)
      this.open()
      const native = binding()
      native.loaderStart(this.handle, order, this.position.sample, epoch, seed, this.dropLast)
      for (;;) {
        const inner = await this.next(signal)
        if (inner === 'aborted') return
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
        const current = new NativeBatch(inner, nextSample)
        if (!kept) lent = current
        yield current
        lent?.release()
      }
      this.position = { epoch: epoch + 1, sample: 0, seed }
    } finally {
      this.running = false
      if (!this.closed) lent?.release()
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

  private next(signal: AbortSignal | undefined): Promise<LoaderBatch | null | 'aborted'> {
    if (signal?.aborted) return Promise.resolve('aborted')
    const native = binding()
    const coming = native.loaderNext(this.handle)
    return new Promise((resolve, reject) => {
      let halves = 0
      let settled = false
      const settle = (): void => {
        settled = true
        clearInterval(timer)
        signal?.removeEventListener('abort', onAbort)
      }
      const onAbort = (): void => {
        settle()
        resolve('aborted')
      }
      // In two halves: the clock of a process that was stopped for long (SIGSTOP) has run out when it goes on.
      const timer = setInterval(() => {
        if (++halves < 2) return
        settle()
        reject(stalled(this.dataset.root, this.stalledMs))
      }, this.stalledMs / 2)
      signal?.addEventListener('abort', onAbort)
      coming.then(
        (batch) => {
          if (settled) return batch && native.releaseBatch(batch.batch)
          settle()
          resolve(batch)
        },
        (cause: unknown) => {
          settle()
          reject(cause)
        },
      )
    })
  }

  private open(): void {
    if (this.closed) throw new EffnetError('EFF_CLOSED', 'the loader was closed')
  }

  private note(batch: LoaderBatch): void {
    // Told before it is counted.
    if (this.onCpu.size === 0 && batch.onCpu.length > 0) this.onCpuDecoded?.(this.dataset.files[batch.onCpu[0]!]!)
    for (const index of batch.onCpu) this.onCpu.add(index)
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

const stalled = (root: string, ms: number): EffnetError =>
  new EffnetError('EFF_DATA_STALLED', `${root}: no images arrived for ${Math.round(ms / 1000)} s`, {
    hint: 'check the disk or the network mount, then go on: --resume',
  })

/** Where the order continues after a batch: behind its last sample. Bad files in front of it were passed over. */
function positionAfter(order: Uint32Array, from: number, batch: LoaderBatch): number {
  const last = batch.indices[batch.count - 1]
  for (let i = from + batch.count - 1; i < order.length; i++) if (order[i] === last) return i + 1
  throw new EffnetError('EFF_INTERNAL', 'a batch holds a sample that is not ahead in the order')
}
