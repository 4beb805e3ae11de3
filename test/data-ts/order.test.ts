import { describe, expect, it } from 'vitest'
import { badLimit } from '../../ts/data/loader.js'
import { compareCodePoints, permutation } from '../../ts/data/order.js'

describe('order of an epoch', () => {
  it('is a permutation that depends on seed and epoch', async () => {
    const a = await permutation(5000, 7, 0)
    expect([...a].sort((x, y) => x - y)).toEqual([...Array(5000).keys()])
    expect(await permutation(5000, 7, 0)).toEqual(a)
    expect(await permutation(5000, 7, 1)).not.toEqual(a)
    expect(await permutation(5000, 8, 0)).not.toEqual(a)
  })

  it('is uniform: every value is about as often in every place', async () => {
    const n = 6
    const rounds = 3000
    const counts = Array.from({ length: n }, () => new Array<number>(n).fill(0))
    for (let e = 0; e < rounds; e++) {
      const order = await permutation(n, 1, e)
      order.forEach((value, place) => {
        counts[place]![value]!++
      })
    }
    const expected = rounds / n
    const chi2 = counts.flat().reduce((s, c) => s + (c - expected) ** 2 / expected, 0)
    // 25 degrees of freedom: 52.6 is passed by chance once in a thousand.
    expect(chi2).toBeLessThan(52.6)
  })

  it('handles 0 and 1', async () => {
    expect((await permutation(0, 1, 0)).length).toBe(0)
    expect([...(await permutation(1, 1, 0))]).toEqual([0])
  })
})

describe('names', () => {
  it('compare by code point', () => {
    const names = ['b', 'a', 'B', '\u{1f600}', '\uffee', 'aa', '']
    expect(names.sort(compareCodePoints)).toEqual(['', 'B', 'a', 'aa', 'b', '\uffee', '\u{1f600}'])
  })
})

describe('limit of unreadable files', () => {
  it.each([
    [100, undefined, 10],
    [1_281_167, undefined, 1281],
    [1000, 0.05, 50],
    [1000, 3, 3],
    [1000, 0, 0],
  ])('of %d files with maxBad %s is %d', (files, maxBad, limit) => {
    expect(badLimit(files, maxBad)).toBe(limit)
  })
})
