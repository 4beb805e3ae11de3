/** Nearest names for a mistyped option or verb. */
import { editDistance } from '../nn/nearest.js'

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
