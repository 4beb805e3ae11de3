import { EffnetError } from '../errors.js'
import { createImageLoader } from './loader.js'
import { permutationSync, SPLIT_STREAM } from './order.js'
import type { DataLoaderOptions, ImageDataset, ImageLoader } from './types.js'

export class FileDataset implements ImageDataset {
  constructor(
    readonly root: string,
    readonly classes: readonly string[],
    readonly files: readonly string[],
    readonly labels: Int32Array,
  ) {
    if (files.length !== labels.length) throw new EffnetError('EFF_INVALID_ARGUMENT', 'as many labels as files are needed')
    for (const label of labels) {
      if (label < 0 || label >= classes.length) {
        throw new EffnetError('EFF_DATA_LABEL', `label ${label} is outside 0..${classes.length - 1}`)
      }
    }
  }

  get length(): number {
    return this.files.length
  }

  take(n: number): ImageDataset {
    const count = Math.max(0, Math.min(this.length, Math.floor(n)))
    return this.subset(Array.from({ length: count }, (_, i) => i))
  }

  split(fraction: number, seed = 0): [ImageDataset, ImageDataset] {
    if (!(fraction > 0 && fraction < 1)) {
      throw new EffnetError('EFF_INVALID_ARGUMENT', `a split fraction lies between 0 and 1, not ${fraction}`)
    }
    const ofClass: number[][] = this.classes.map(() => [])
    for (let i = 0; i < this.length; i++) ofClass[this.labels[i]!]!.push(i)
    const held = new Uint8Array(this.length)
    ofClass.forEach((members, k) => {
      const n = members.length
      const count = n < 2 ? 0 : Math.min(n - 1, Math.max(1, Math.round(n * fraction)))
      const order = permutationSync(n, seed, k, SPLIT_STREAM)
      for (let i = 0; i < count; i++) held[members[order[i]!]!] = 1
    })
    const part = (want: number) => this.subset(Array.from(held.keys()).filter((i) => held[i] === want))
    return [part(0), part(1)]
  }

  loader(options: DataLoaderOptions): ImageLoader {
    return createImageLoader(this, options)
  }

  private subset(indices: readonly number[]): FileDataset {
    return new FileDataset(
      this.root,
      this.classes,
      indices.map((i) => this.files[i]!),
      Int32Array.from(indices, (i) => this.labels[i]!),
    )
  }
}
