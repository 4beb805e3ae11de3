import { describe, expect, it } from 'vitest'
import { dropThreshold, philoxU32 } from '../../ts/graph/philox.js'
import { uniform } from './values.js'

const MASK = 0xffffffffn

/** Philox4x32-10 as the paper states it, on big integers. */
function reference(counter: readonly bigint[], key: readonly bigint[]): bigint[] {
  let [c0, c1, c2, c3] = counter as [bigint, bigint, bigint, bigint]
  let [k0, k1] = key as [bigint, bigint]
  for (let round = 0; round < 10; round++) {
    const first = 0xd2511f53n * c0
    const second = 0xcd9e8d57n * c2
    ;[c0, c1, c2, c3] = [(second >> 32n) ^ c1 ^ k0, second & MASK, (first >> 32n) ^ c3 ^ k1, first & MASK]
    k0 = (k0 + 0x9e3779b9n) & MASK
    k1 = (k1 + 0xbb67ae85n) & MASK
  }
  return [c0, c1, c2, c3]
}

const hex = (words: readonly (bigint | number)[]): string => words.map((w) => w.toString(16).padStart(8, '0')).join(' ')

describe('Philox4x32-10', () => {
  it('has the vectors of Random123', () => {
    expect(hex(reference([0n, 0n, 0n, 0n], [0n, 0n]))).toBe('6627e8d5 e169c58d bc57ac4c 9b00dbd8')
    expect(hex(reference([MASK, MASK, MASK, MASK], [MASK, MASK]))).toBe('408f276d 41c83b0e a20bc7c6 6d5451fd')
    expect(hex(reference([0x243f6a88n, 0x85a308d3n, 0x13198a2en, 0x03707344n], [0xa4093822n, 0x299f31d0n]))).toBe(
      'd16cfe09 94fdcceb 5001e420 24126ea1',
    )
    expect(hex([0, 1, 2, 3].map((element) => philoxU32(0, 0, 0, element)))).toBe('6627e8d5 e169c58d bc57ac4c 9b00dbd8')
  })

  it('takes seed as key, and element, stream and step as counter, to 53 bits', () => {
    const next = uniform(4)
    const word = () => Math.floor((next() + 1) * 2 ** 31)
    for (let i = 0; i < 200; i++) {
      const seed = (word() % 2 ** 21) * 2 ** 32 + word()
      const step = (word() % 2 ** 21) * 2 ** 32 + word()
      const [stream, group] = [word(), word()]
      const counter = [BigInt(group), BigInt(stream), BigInt(step) & MASK, BigInt(step) >> 32n]
      const words = reference(counter, [BigInt(seed) & MASK, BigInt(seed) >> 32n])
      expect([0, 1, 2, 3].map((k) => philoxU32(seed, step, stream, group * 4 + k))).toEqual(words.map(Number))
    }
  })

  it('drops about as often as asked', () => {
    let dropped = 0
    for (let element = 0; element < 20000; element++) if (philoxU32(1, 2, 3, element) < dropThreshold(0.2)) dropped++
    expect(Math.abs(dropped / 20000 - 0.2)).toBeLessThan(0.01)
    expect(dropThreshold(0)).toBe(0)
  })
})
