/** Names that a mistyped one may have meant. */

/** Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours count 1. */
function editDistance(a: string, b: string): number {
  let before: number[] = []
  let last = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1
      let d = Math.min(row[j - 1]! + 1, last[j]! + 1, last[j - 1]! + same)
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) d = Math.min(d, before[j - 2]! + 1)
      row.push(d)
    }
    before = last
    last = row
  }
  return last[b.length]!
}

/**
 * Up to `count` of `names` that `given` may have meant: within two edits, or one the beginning of the other (three characters
 * at least). Nearest first.
 */
export function nearest(given: string, names: Iterable<string>, count = 3): string[] {
  const wanted = given.toLowerCase()
  const found: { name: string; distance: number }[] = []
  for (const name of names) {
    const candidate = name.toLowerCase()
    const distance = editDistance(wanted, candidate)
    const prefix =
      Math.min(wanted.length, candidate.length) >= 3 && (candidate.startsWith(wanted) || wanted.startsWith(candidate))
    if (distance <= 2 && distance < candidate.length) found.push({ name, distance })
    else if (prefix) found.push({ name, distance: 3 + Math.abs(wanted.length - candidate.length) })
  }
  found.sort((x, y) => x.distance - y.distance || (x.name < y.name ? -1 : 1))
  return found.slice(0, count).map((f) => f.name)
}
