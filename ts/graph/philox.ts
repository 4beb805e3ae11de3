/** Philox4x32-10 (Salmon et al., SC 2011); the same bits as native/core/philox.h. */
export function philoxU32(seed: number, step: number, stream: number, element: number): number {
  philoxBlock(seed, step, stream, Math.floor(element / 4), words)
  return words[element % 4]!
}

const words = new Uint32Array(4)
const TWO32 = 0x100000000

/** The words of elements 4 * block .. 4 * block + 3. */
export function philoxBlock(seed: number, step: number, stream: number, block: number, into: Uint32Array): void {
  let c0 = block >>> 0
  let c1 = stream >>> 0
  let c2 = (step % TWO32) >>> 0
  let c3 = Math.floor(step / TWO32) >>> 0
  let k0 = (seed % TWO32) >>> 0
  let k1 = Math.floor(seed / TWO32) >>> 0
  for (let round = 0; round < 10; round++) {
    const n0 = mulHigh(0xcd9e8d57, c2) ^ c1 ^ k0
    const n2 = mulHigh(0xd2511f53, c0) ^ c3 ^ k1
    c1 = Math.imul(0xcd9e8d57, c2) >>> 0
    c3 = Math.imul(0xd2511f53, c0) >>> 0
    c0 = n0 >>> 0
    c2 = n2 >>> 0
    k0 = (k0 + 0x9e3779b9) >>> 0
    k1 = (k1 + 0xbb67ae85) >>> 0
  }
  into[0] = c0
  into[1] = c1
  into[2] = c2
  into[3] = c3
}

/** Upper 32 bits of the product of two unsigned words. */
function mulHigh(a: number, b: number): number {
  const aHi = a >>> 16
  const aLo = a & 0xffff
  const bHi = b >>> 16
  const bLo = b & 0xffff
  const hl = aHi * bLo
  const mid = aLo * bHi + (hl & 0xffff) + ((aLo * bLo) >>> 16)
  return aHi * bHi + (hl >>> 16) + Math.floor(mid / 0x10000)
}

/** An element is dropped when its word is below this; rate in [0, 1). */
export const dropThreshold = (rate: number): number => Math.floor(rate * 4294967296)
