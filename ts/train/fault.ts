/**
 * Fault injection for the tests of crash safety (docs/reliability.md): `EFFNET_FAULT=step:N` kills the process after step N as
 * `kill -9` would, `EFFNET_FAULT=save:N:KIND` lets the N-th file operation of the process's saves go wrong (native/io/fault.h
 * counts them), and `EFFNET_FAULT=log:N:KIND` the N-th write to any other file of a run folder (`log:N+:KIND` that and each after it).
 */
import type { SaveFault } from '../binding.js'

export function faultPoint(point: string): void {
  const wanted = process.env['EFFNET_FAULT']
  if (wanted === undefined || !wanted.split(',').includes(point)) return
  die()
}

let logWrites = 0
/** Of this process; what a sweep over `log:N` goes up to. */
export const logWriteCount = (): number => logWrites

/**
 * Counts a write to a file of a run folder that is no checkpoint: what it is to fail with, after half of the text or with nothing
 * written; undefined where it is not to fail.
 */
export function logFault(): { cause: NodeJS.ErrnoException; half: boolean } | undefined {
  const [, at, on, kind] = /(?:^|,)log:(\d+)(\+?):(enospc|eio|torn)(?:,|$)/.exec(process.env['EFFNET_FAULT'] ?? '') ?? []
  const number = ++logWrites
  if (at === undefined) return undefined
  if (number !== Number(at) && (on === '' || number < Number(at))) return undefined
  const code = kind === 'eio' ? 'EIO' : 'ENOSPC'
  return { cause: Object.assign(new Error(`${code}: write number ${number}`), { code }), half: kind === 'torn' }
}

export interface FaultSource {
  /** Counts an operation and says what it meets; may end the process. */
  saveOperation?(operation: string, path: string): SaveFault
  /** Ends the process; tests that sweep within one process have their own. */
  die?(): never
}

/** One file operation of a save. `half` is what a torn one does before the process dies; by default all of it. */
export async function operate<T>(
  source: FaultSource,
  operation: string,
  file: string,
  work: () => Promise<T>,
  half: () => Promise<unknown> = work,
): Promise<T> {
  const fault = source.saveOperation?.(operation, file) ?? 'none'
  if (fault === 'none') return work()
  if (fault === 'torn') {
    await half()
    return source.die ? source.die() : die()
  }
  throw Object.assign(new Error(`${fault}: ${operation} '${file}'`), { code: fault })
}

function die(): never {
  process.kill(process.pid, 'SIGKILL')
  // The signal is delivered while this waits; nothing after it may run.
  for (;;) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10_000)
}
