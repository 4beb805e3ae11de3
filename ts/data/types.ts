/** Public types of the data side: datasets, transforms, loaders, images as users give them. */
import type { ErrorCode } from '../errors.js'

export type Interpolation = 'bicubic' | 'bilinear'

/** Where files become batches: decoded and cropped on the CPU, or by the GPU that the model runs on. */
export type DataBackend = 'cpu' | 'gpu'

export interface ImageFolderOptions {
  /**
   * Fraction of each class, 0 < f < 1, to hold out as validation set where the folder has no `val/` (or `validation/`).
   * Deterministic by `seed`, stratified: at least one image of each class that has two or more.
   */
  valSplit?: number
  /** Of the held-out choice. Default 0. */
  seed?: number
}

export interface ImageSplitOptions extends ImageFolderOptions {
  /** One split: its folder, or the folder of classes itself where there is no `train/` and `val/`. */
  split: 'train' | 'val'
}

/** Labelled image files. Immutable; `take` and `split` give new ones. */
export interface ImageDataset {
  /** Absolute path of the folder of classes. */
  readonly root: string
  /** Sorted by code point, as torchvision's ImageFolder. */
  readonly classes: readonly string[]
  /** Absolute paths, by class, then by path. */
  readonly files: readonly string[]
  /** Index in `classes` of each file. */
  readonly labels: Int32Array
  readonly length: number
  /** The first n images. */
  take(n: number): ImageDataset
  /** Two datasets: without, and with, the held-out fraction; deterministic by seed, stratified. */
  split(fraction: number, seed?: number): [ImageDataset, ImageDataset]
  /** Starts no work before the first batch is asked for. */
  loader(options: DataLoaderOptions): ImageLoader
}

/** What `fit` takes. */
export interface ImageFolder {
  readonly root: string
  readonly classes: readonly string[]
  readonly train: ImageDataset
  /** Absent where the folder has no validation images and none were split off. */
  readonly val?: ImageDataset
}

/** Random resized crop and flip. */
export interface TrainTransform {
  mode: 'train'
  /** Side of the crop in pixels. */
  size: number
  /** Share of the image's area, lowest and highest; default [0.35, 1]. */
  scale?: readonly [number, number]
  /** Width / height; default [3/4, 4/3]. */
  ratio?: readonly [number, number]
  /** Probability of a horizontal flip; default 0.5. */
  hflip?: number
  interpolation?: Interpolation
  exifOrientation?: boolean
  maxPixels?: number
}

/** Resize of the short side, then centre crop: Pillow's arithmetic bit for bit. */
export interface EvalTransform {
  mode: 'eval'
  /** Side of the crop in pixels. */
  size: number
  /** Short side before the crop; default round(size / 0.875). */
  resizeTo?: number
  /** Resize the whole image to size x size, whatever its shape, instead of cropping. */
  squash?: boolean
  interpolation?: Interpolation
  /** Rotate as the EXIF tag says; default true. */
  exifOrientation?: boolean
  /** Larger images are refused; default 178956970. */
  maxPixels?: number
}

export type Transform = TrainTransform | EvalTransform

export interface DataLoaderOptions {
  batchSize: number
  transform: Transform
  /** Shuffles each epoch by (seed, epoch); default: on in 'train' mode. */
  shuffle?: boolean
  /** Of order and augmentation; default 0. */
  seed?: number
  /** Leaves the incomplete last batch out; default false. */
  dropLast?: boolean
  /** Decoding threads; default: usable CPUs, at most 16. */
  workers?: number
  /** Batches ready or in work; default 3. */
  prefetch?: number
  /** Unreadable files allowed: a count, or a fraction of the dataset when below 1. Default 0.001, at least 10 files. */
  maxBad?: number
}

/** A position to continue from: the next sample is number `sample` of epoch `epoch`'s order. */
export interface LoaderState {
  epoch: number
  sample: number
  seed: number
}

export interface BadFile {
  path: string
  code: ErrorCode
  message: string
}

/** A decoded batch in native memory; give it back with `release` (or to a step, which reads it, then `release`). */
export interface ImageBatch {
  /** Real samples; the rest of a tail batch has label -1. */
  readonly count: number
  /** Positions in the dataset's `files`, of the real samples. */
  readonly indices: Uint32Array
  /** Position in the epoch's order after this batch. */
  readonly nextSample: number
  /** Copies the bytes out: images [batchSize, size, size, 3] uint8, then at the next multiple of 64 bytes int32 labels. */
  bytes(): Uint8Array
  release(): void
}

export interface ImageLoader {
  readonly batchSize: number
  /** Batches of a whole epoch. */
  readonly batches: number
  readonly badFiles: readonly BadFile[]
  /** The rest of the current epoch; afterwards the state is the start of the next. A batch is released when the next is asked for. */
  epoch(): AsyncGenerator<ImageBatch, void, undefined>
  state(): LoaderState
  load(state: LoaderState): void
  close(): void
  [Symbol.asyncDispose](): Promise<void>
}

/** Pixels: RGB, RGBA (alpha is dropped) or gray, row by row, 8 bits a sample. */
export interface RawImage {
  data: Uint8Array | Uint8ClampedArray
  width: number
  height: number
  /** Default 3. */
  channels?: 1 | 3 | 4
}

/** A path, the bytes of an image file, or pixels. */
export type ImageInput = string | URL | Uint8Array | RawImage
