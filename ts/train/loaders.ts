/** How a run reads its images. */
import { NativeImageLoader } from '../data/loader.js'
import type { ImageDataset } from '../data/types.js'
import type { Model } from '../model.js'
import { Evaluator } from './evaluate.js'
import type { ResolvedOptions } from './types.js'

const pipeline = ({ workers, prefetch, maxBad }: ResolvedOptions) => ({
  workers,
  prefetch,
  ...(maxBad === null ? {} : { maxBad }),
})

/** `held`: batches in use at once. */
export function trainLoader(train: ImageDataset, o: ResolvedOptions, held: number): NativeImageLoader {
  const { exifOrientation, maxPixels } = o
  return new NativeImageLoader(train, {
    batchSize: o.batchSize,
    transform: { mode: 'train', size: o.imageSize, ...o.augment, exifOrientation, maxPixels },
    shuffle: true,
    seed: o.seed,
    dropLast: true,
    ...pipeline(o),
    prefetch: o.prefetch + held - 1,
  })
}

export function evaluatorOf(model: Model, val: ImageDataset, o: ResolvedOptions): Evaluator {
  const { cropPct, interpolation, exifOrientation, maxPixels } = o
  return new Evaluator(model, {
    data: val,
    batchSize: o.evalBatchSize,
    imageSize: o.evalImageSize,
    cropPct,
    interpolation,
    exifOrientation,
    maxPixels,
    ...pipeline(o),
  })
}
