/** Small photos of three kinds that a network tells apart within a few steps. */
import { mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import sharp from 'sharp'
import { philoxU32 } from '../../../ts/graph/philox.js'

const KINDS = ['blue', 'green', 'red'] as const

/** Noise around the class's colour. */
export function pixels(kind: number, seed: number, side: number): Uint8Array {
  const data = new Uint8Array(side * side * 3)
  for (let i = 0; i < data.length; i++) {
    const noise = philoxU32(seed, kind, 1, i) % 90
    data[i] = noise + (2 - (i % 3) === kind ? 140 : 20)
  }
  return data
}

export interface DataSize {
  train: number
  val: number
  side?: number
}

/** `dir/train` and `dir/val`, each with so many JPEGs a class. */
export async function makeData(dir: string, { train, val, side = 48 }: DataSize): Promise<string> {
  for (const [split, count, offset] of [
    ['train', train, 0],
    ['val', val, 1000],
  ] as const) {
    for (const [kind, name] of KINDS.entries()) {
      const folder = path.join(dir, split, name)
      mkdirSync(folder, { recursive: true })
      for (let i = 0; i < count; i++) {
        const raw = { width: side, height: side, channels: 3 } as const
        const jpeg = await sharp(pixels(kind, offset + i, side), { raw })
          .jpeg({ quality: 95 })
          .toBuffer()
        writeFileSync(path.join(folder, `${String(i).padStart(3, '0')}.jpg`), jpeg)
      }
    }
  }
  return dir
}
