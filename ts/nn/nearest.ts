/** Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours count 1. */
export function editDistance(a: string, b: string): number {
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

/** The candidates most like `word`, best first: those within `limit` edits, and those that begin with it. */
export function nearest(word: string, candidates: readonly string[], limit = 3, count = 5): string[] {
  const target = word.toLowerCase()
  return candidates
    .map((name) => ({ name, d: editDistance(target, name), prefix: target.length > 2 && name.startsWith(target) }))
    .filter(({ d, prefix }) => d <= limit || prefix)
    .sort((x, y) => x.d - y.d || (x.name < y.name ? -1 : 1))
    .slice(0, count)
    .map(({ name }) => name)
}
