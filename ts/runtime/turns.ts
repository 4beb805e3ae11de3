/**
 * Long work of plain JavaScript as a generator that yields between its parts: run at once where nobody waits (tests, tools), or
 * with a turn of the event loop after each part.
 */
import { setImmediate } from 'node:timers/promises'

export function atOnce<T>(parts: Generator<void, T>): T {
  for (;;) {
    const part = parts.next()
    if (part.done) return part.value
  }
}

export async function inTurns<T>(parts: Generator<void, T>): Promise<T> {
  for (;;) {
    const part = parts.next()
    if (part.done) return part.value
    await setImmediate()
  }
}
