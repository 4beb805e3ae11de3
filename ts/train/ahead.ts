/** Batches on their way to the device before their step. */
import type { NativeBatch } from '../data/loader.js'

/** Batches that are in use at once: that of the step in work, and the next. */
export const HELD_AHEAD = 2

interface Source {
  /** Batches that their taker gives back; ends where `signal` does. */
  batches(signal: AbortSignal): AsyncGenerator<NativeBatch, void, undefined>
  stage(batch: NativeBatch): Promise<void>
  /** What was in the way of `stage`. Told once, then nothing is staged: steps bring their input themselves. */
  onUnstaged(cause: unknown): void
}

/**
 * The batches of an epoch; the next one is asked for and staged while one is worked on, which is given back when the next is asked for
 * or the loop is left.
 */
export async function* ahead(source: Source, signal?: AbortSignal): AsyncGenerator<NativeBatch, void, undefined> {
  const left = new AbortController()
  const batches = source.batches(signal ? AbortSignal.any([signal, left.signal]) : left.signal)
  let staging = true
  const pull = async (): Promise<NativeBatch | undefined> => {
    const { value } = await batches.next()
    if (value && staging) {
      await source.stage(value).catch((cause: unknown) => {
        staging = false
        if (!left.signal.aborted) source.onUnstaged(cause)
      })
    }
    return value || undefined
  }
  let coming = pull()
  let current: NativeBatch | undefined
  try {
    for (;;) {
      current = await coming
      if (!current) return
      coming = pull()
      // Where the loop ends before it is awaited.
      coming.catch(() => undefined)
      yield current
      current.release()
    }
  } finally {
    left.abort()
    current?.release()
    const next = await coming.catch(() => undefined)
    next?.release()
    await batches.return()
  }
}
