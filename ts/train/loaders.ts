/** How a run reads its images. */
import { NativeImageLoader } from '../data/loader.js'
import type { ImageDataset } from '../data/types.js'
import type { Model } from '../model.js'
import { HELD_AHEAD } from './ahead.js'
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
    device: to.model.session.imageDevice(o.dataBackend),
    onCpuDecoded: to.onCpuDecoded,
  })
}

function evaluatorOf(val: ImageDataset, o: ResolvedOptions, { model, onCpuDecoded }: ReaderHost): Evaluator {
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
  return new Evaluator(model, options, onCpuDecoded)
}

interface ReaderHost {
  model: Model
  onCpuDecoded(this: void, file: string): void
}

/** What a run reads: its training images, its validation images. */
export class Readers {
  readonly train: NativeImageLoader
  readonly val: Evaluator | undefined
  private told = false

  constructor(
    model: Model,
    data: Pick<FitOptions, 'train' | 'val'>,
    private readonly options: ResolvedOptions,
    warn: (code: string, message: string, hint: string) => void,
  ) {
    const onCpuDecoded = (file: string): void => {
      if (this.told) return
      this.told = true
      const message = `${file}: decoded on the CPU, for nvJPEG does not take it; the run's result counts such files`
      warn('cpu-decoded', message, 'nvJPEG takes JPEG files, gray or RGB')
    }
    const host = { model, onCpuDecoded }
    this.train = trainLoader(data.train, options, model.session.stagesAhead ? HELD_AHEAD : 1, host)
    this.val = data.val && evaluatorOf(data.val, options, host)
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
