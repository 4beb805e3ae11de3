/** How a run reads its images. */
import { type NativeBatch, NativeImageLoader } from '../data/loader.js'
import type { ImageDataset } from '../data/types.js'
import { EffnetError } from '../errors.js'
import type { Model } from '../model.js'
import { ahead, HELD_AHEAD } from './ahead.js'
import { Evaluator } from './evaluate.js'
import type { FitOptions, FitResult, ResolvedOptions } from './types.js'

const pipeline = ({ workers, prefetch, maxBad }: ResolvedOptions) => ({
  workers,
  prefetch,
  ...(maxBad === null ? {} : { maxBad }),
})

/** `held`: batches in use at once. */
function trainLoader(train: ImageDataset, o: ResolvedOptions, held: number, to: ReaderHost): NativeImageLoader {
  const { exifOrientation, maxPixels } = o
  return new NativeImageLoader(train, {
    batchSize: o.batchSize,
    transform: { mode: 'train', size: o.imageSize, ...o.augment, exifOrientation, maxPixels },
    shuffle: true,
    seed: o.seed,
    dropLast: true,
    ...pipeline(o),
    prefetch: o.prefetch + held - 1,
    ...to.model.session.loaderDevice(o.dataBackend),
    onCpuDecoded: to.onCpuDecoded,
  })
}

function evaluatorOf(val: ImageDataset, o: ResolvedOptions, host: ReaderHost): Evaluator {
  const { cropPct, interpolation, exifOrientation, maxPixels, dataBackend } = o
  const options = {
    data: val,
    dataBackend,
    batchSize: o.evalBatchSize,
    imageSize: o.evalImageSize,
    cropPct,
    interpolation,
    exifOrientation,
    maxPixels,
    ...pipeline(o),
  }
  return new Evaluator(host.model, options, host)
}

interface ReaderHost {
  model: Model
  onCpuDecoded(this: void, file: string): void
  onUnstaged(this: void, cause: unknown): void
}

/** What a run reads: its training images, its validation images. */
export class Readers {
  readonly train: NativeImageLoader
  readonly val: Evaluator | undefined
  private readonly stagesAhead: boolean
  private readonly told = new Set<string>()

  constructor(
    model: Model,
    data: Pick<FitOptions, 'train' | 'val'>,
    private readonly options: ResolvedOptions,
    private readonly warn: (code: string, message: string, hint: string) => void,
  ) {
    const { onCpuDecoded, onUnstaged } = this
    const host = { model, onCpuDecoded, onUnstaged }
    this.stagesAhead = model.session.stagesAhead
    this.train = trainLoader(data.train, options, this.stagesAhead ? HELD_AHEAD : 1, host)
    try {
      this.val = data.val && evaluatorOf(data.val, options, host)
    } catch (cause) {
      this.train.close()
      throw cause
    }
  }

  private readonly onCpuDecoded = (file: string): void => {
    const message = `${file}: decoded on the CPU, for nvJPEG does not take it; the run's result counts such files`
    this.tellOnce('cpu-decoded', message, 'nvJPEG takes JPEG files, gray or YCbCr')
  }

  /** Of a batch that the device did not take before its step. */
  readonly onUnstaged = (cause: unknown): void => {
    if (cause instanceof EffnetError && cause.code === 'EFF_GPU_FAULT') return // the step says so
    const message = `batches are copied to the device in their steps, not beside the step before: ${(cause as Error).message}`
    this.tellOnce('not-ahead', message, 'results are the same; a smaller batch leaves room for two')
  }

  private tellOnce(code: string, message: string, hint: string): void {
    if (this.told.has(code)) return
    this.told.add(code)
    this.warn(code, message, hint)
  }

  /** The training images once more; where the device takes batches ahead, `stage` gets the next one while one is worked on. */
  epoch(stage: (batch: NativeBatch) => Promise<void>, signal: AbortSignal): AsyncGenerator<NativeBatch, void, undefined> {
    const { train, onUnstaged } = this
    if (!this.stagesAhead) return train.epoch(signal)
    return ahead({ batches: (end) => train.epoch(end, { kept: true }), stage, onUnstaged }, signal)
  }

  /** Of files that this process met. */
  result(): Pick<FitResult, 'badFiles' | 'cpuDecodedFiles'> {
    const { train, val, options } = this
    const badFiles = [...train.badFiles, ...(val?.badFiles ?? [])]
    return options.dataBackend === 'gpu' ? { badFiles, cpuDecodedFiles: train.cpuDecoded + (val?.cpuDecoded ?? 0) } : { badFiles }
  }

  close(): void {
    this.train.close()
    this.val?.close()
  }
}
