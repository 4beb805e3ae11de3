/** Orders: of names (as Python sorts them) and of samples in an epoch (Fisher-Yates on Philox, so a resume repeats it). */
import { setImmediate } from 'node:timers/promises'
import { philoxU32 } from '../graph/philox.js'

/** Philox stream of the epoch order; ops of graphs number their streams from 0, augmentation is keyed in native/io. */
const ORDER_STREAM = 0xfffffff0
export const SPLIT_STREAM = 0xfffffff1

/** Draws between two turns of the event loop: about half a millisecond. */
const SLICE = 1024

/** Compares by code point, as Python and torchvision do; `<` on strings compares UTF-16 units. */
export function compareCodePoints(a: string, b: string): number {
  const n = Math.min(a.length, b.length)
  for (let i = 0; i < n; i++) {
    const x = a.charCodeAt(i)
    const y = b.charCodeAt(i)
    if (x !== y) return rank(x) - rank(y)
  }
  return a.length - b.length
}

/** Surrogates stand for code points above every other unit. */
const rank = (unit: number): number => (unit >= 0xe000 ? unit - 0x800 : unit >= 0xd800 ? unit + 0x2000 : unit)

/** One draw of Fisher and Yates: the place i gets one of 0..i. */
function exchange(order: Uint32Array, i: number, seed: number, key: number, stream: number): void {
  const j = Math.floor((philoxU32(seed, key, stream, i) * (i + 1)) / 0x100000000)
  const t = order[i]!
  order[i] = order[j]!
  order[j] = t
}

/** A permutation of 0..n-1 that depends on n, seed, epoch and stream only. */
export async function permutation(n: number, seed: number, epoch: number, stream = ORDER_STREAM): Promise<Uint32Array> {
  const order = sequence(n)
  for (let i = n - 1; i > 0; i--) {
    exchange(order, i, seed, epoch, stream)
    if (i % SLICE === 0) await setImmediate()
  }
  return order
}

export function sequence(n: number): Uint32Array {
  const order = new Uint32Array(n)
  for (let i = 0; i < n; i++) order[i] = i
  return order
}

/** As `permutation`, for the small lists of one class. */
export function permutationSync(n: number, seed: number, key: number, stream: number): Uint32Array {
  const order = sequence(n)
  for (let i = n - 1; i > 0; i--) {
    exchange(order, i, seed, key, stream)
  }
  return order
}
