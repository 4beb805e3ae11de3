/** How far results are apart, and what they move when parameters are off by what a precision rounds. */

/** What a precision rounds its operands by, at most, as a share; of FP32 some units in the last place, as sums in another order are. */
export const ROUNDING = { fp32: 2 ** -21, tf32: 2 ** -11, 'bf16-mixed': 2 ** -8, 'fp16-mixed': 2 ** -11 }

/** Length of the difference as a share of the length; of what is 0 everywhere, its own. Infinity where a value is none. */
export function apart(a, b) {
  let off = 0
  let size = 0
  for (let i = 0; i < b.length; i++) {
    off += (a[i] - b[i]) ** 2
    size += b[i] ** 2
  }
  const share = Math.sqrt(off) / (size > 0 ? Math.sqrt(size) : 1)
  return Number.isNaN(share) ? Infinity : share
}

/** Every value of a model's tensors off by up to `share` of it. */
export function move(session, share, seed) {
  let state = seed
  const moved = (value) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return value * (1 + share * (state / 2 ** 31 - 1))
  }
  for (const { name } of session.slots) session.write(name, session.read(name).map(moved))
}

/** Means of a curve's parts, each of `steps`. */
export function partsOf(values, steps) {
  const means = []
  for (let from = 0; from < values.length; from += steps) {
    const part = values.slice(from, from + steps)
    means.push(part.reduce((total, value) => total + value, 0) / part.length)
  }
  return means
}

/**
 * How far the parts of a curve are from those of a reference, as the largest share of what each may be off by: `most` times what `draws`
 * of the reference, moved a little at their start, are off by in that part or one before it, and at least what rounding a loss by `rounding`
 * moves it by. Small differences grow along a curve, and in few draws no single part shows how far. Infinity where a value is none, or one
 * has no more parts.
 */
export function shareOfLimit(parts, draws, reference, { rounding, most }) {
  let moved = 0
  const shares = reference.map((mean, i) => {
    moved = Math.max(moved, rounding * mean, ...draws.map((draw) => Math.abs(draw[i] - mean)))
    return Math.abs(parts[i] - mean) / (most * moved)
  })
  const largest = Math.max(...shares)
  return parts.length !== reference.length || Number.isNaN(largest) ? Infinity : largest
}
