/** Batches on their way to the device before their step. */
import type { NativeBatch } from '../data/loader.js'

/** Batches that are in use at once: that of the step in work, and the next. */
export const HELD_AHEAD = 2

/**
 * The batches of an epoch; the next one is asked for and staged while one is worked on. `batches` must hold `HELD_AHEAD` of them.
 * An error of `stage` shows in the step, which then brings the input itself.
 */
export async function* ahead(
  batches: AsyncGenerator<NativeBatch, void, undefined>,
  stage: (batch: NativeBatch) => Promise<void>,
): AsyncGenerator<NativeBatch, void, undefined> {
  const pull = async (): Promise<IteratorResult<NativeBatch, void>> => {
    const next = await batches.next()
    if (!next.done) await stage(next.value).catch(() => undefined)
    return next
  }
  let coming = pull()
  try {
    for (;;) {
      const { value, done } = await coming
      if (done || !value) return
      coming = pull()
      // Where the loop ends before it is awaited.
      coming.catch(() => undefined)
      yield value
    }
  } finally {
    await coming.catch(() => undefined)
    await batches.return()
  }
}
