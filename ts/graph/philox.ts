/** Philox4x32-10 (Salmon et al., SC 2011); the same bits as native/core/philox.h. */
export function philoxU32(seed: number, step: number, stream: number, element: number): number {
  const TWO32 = 0x100000000
  let c0 = Math.floor(element / 4) >>> 0
  let c1 = stream >>> 0
  let c2 = (step % TWO32) >>> 0
  let c3 = Math.floor(step / TWO32) >>> 0
  let k0 = (seed % TWO32) >>> 0
  let k1 = Math.floor(seed / TWO32) >>> 0
  for (let round = 0; round < 10; round++) {
    const [h0, l0] = mulhilo(0xd2511f53, c0)
    const [h1, l1] = mulhilo(0xcd9e8d57, c2)
    const n0 = (h1 ^ c1 ^ k0) >>> 0
    const n2 = (h0 ^ c3 ^ k1) >>> 0
    c0 = n0
    c1 = l1
    c2 = n2
    c3 = l0
    k0 = (k0 + 0x9e3779b9) >>> 0
    k1 = (k1 + 0xbb67ae85) >>> 0
  }
  return [c0, c1, c2, c3][element % 4]!
}

function mulhilo(a: number, b: number): [number, number] {
  const aHi = a >>> 16
  const aLo = a & 0xffff
  const bHi = b >>> 16
  const bLo = b & 0xffff
  const ll = aLo * bLo
  const lh = aLo * bHi
  const hl = aHi * bLo
  const mid = (ll >>> 16) + (lh & 0xffff) + (hl & 0xffff)
  const hi = aHi * bHi + (lh >>> 16) + (hl >>> 16) + (mid >>> 16)
  return [hi >>> 0, ((mid << 16) | (ll & 0xffff)) >>> 0]
}

/** An element is dropped when its word is below this; rate in [0, 1). */
export const dropThreshold = (rate: number): number => Math.floor(rate * 4294967296)
