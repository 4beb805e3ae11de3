import { describe, expect, it } from 'vitest'
import { error } from '../helpers/layer_check.js'
import { maxDifference } from './values.js'

describe.each([0, 3, 7])('a NaN at %d of 8', (at) => {
  const want = Float64Array.from({ length: 8 }, (_, i) => i)
  const got = want.slice()
  got[at] = Number.NaN

  it('is never within a tolerance', () => {
    expect(maxDifference(got, want)).toBe(Infinity)
    expect(maxDifference(want, got)).toBe(Infinity)
    expect(error(got, want, 'bf16')).toBe(Infinity)
    expect(error(want, got, 'f32')).toBe(Infinity)
  })
})
