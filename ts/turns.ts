/**
 * Long work of plain JavaScript in parts: a generator yields wherever it may be interrupted, as often as it likes. Run at once where
 * nobody waits (tests, tools), or with turns of the event loop in between.
 */
import { setImmediate } from 'node:timers/promises'

export type Parts<T> = Generator<void, T>

/** A function, and the same in parts. */
export interface Parted<A extends unknown[], T> {
  (...args: A): T
  readonly parts: (...args: A) => Parts<T>
}

/** Milliseconds after which others have their turn. */
const SLICE_MS = 1

export const parted = <A extends unknown[], T>(parts: (...args: A) => Parts<T>): Parted<A, T> =>
  Object.assign((...args: A) => atOnce(parts(...args)), { parts })

function atOnce<T>(parts: Parts<T>): T {
  for (;;) {
    const part = parts.next()
    if (part.done) return part.value
  }
}

export async function inTurns<T>(parts: Parts<T>): Promise<T> {
  let since = performance.now()
  for (;;) {
    const part = parts.next()
    if (part.done) return part.value
    if (performance.now() - since < SLICE_MS) continue
    await setImmediate()
    since = performance.now()
  }
}
