/**
 * Signals of a training run. SIGINT, SIGTERM and SIGUSR1 end it at a checkpoint of the current step (exit 75), a second SIGINT
 * at once (130); SIGUSR2 writes a checkpoint and goes on. SIGHUP (a closed terminal) and SIGPIPE (a closed pager) do not end it.
 */
import { EXIT } from './exit.js'

export interface SignalActions {
  /** Ends the run after the step in work, with a checkpoint. Called once. */
  stop(signal: NodeJS.Signals): void
  /** Writes a checkpoint and goes on. */
  checkpoint(): void
  /** Ends the process now; the reason is told first. */
  now(exitCode: number, reason: string): void
  /** Of the first SIGINT: tells that a second one ends at once. */
  note(text: string): void
}

/** `process`, or an emitter in tests. */
export interface SignalSource {
  on(signal: NodeJS.Signals, listener: () => void): unknown
  off(signal: NodeJS.Signals, listener: () => void): unknown
}

/** Installs the handlers; the returned function takes them away. `graceMs` is how long SIGTERM gives for the checkpoint. */
export function handleSignals(actions: SignalActions, graceMs: number, source: SignalSource = process): () => void {
  let stopping = false
  let interrupted = false
  let timer: NodeJS.Timeout | undefined
  const stop = (signal: NodeJS.Signals): void => {
    if (stopping) return
    stopping = true
    actions.stop(signal)
  }
  const listeners: [NodeJS.Signals, () => void][] = [
    [
      'SIGINT',
      () => {
        if (interrupted) {
          actions.now(EXIT.secondInterrupt, 'second interrupt: stopped without a new checkpoint')
          return
        }
        interrupted = true
        actions.note('interrupted: writing a checkpoint at this step; once more stops at once')
        stop('SIGINT')
      },
    ],
    [
      'SIGTERM',
      () => {
        actions.note('SIGTERM: writing a checkpoint at this step')
        timer ??= setTimeout(() => {
          actions.now(EXIT.killed, `no checkpoint could be written within ${graceMs / 1e3} s; the one before is kept`)
        }, graceMs)
        timer.unref()
        stop('SIGTERM')
      },
    ],
    [
      'SIGUSR1',
      () => {
        actions.note('SIGUSR1: writing a checkpoint at this step')
        stop('SIGUSR1')
      },
    ],
    ['SIGUSR2', () => actions.checkpoint()],
    ['SIGHUP', () => {}],
    ['SIGPIPE', () => {}],
  ]
  for (const [signal, listener] of listeners) source.on(signal, listener)
  return () => {
    clearTimeout(timer)
    for (const [signal, listener] of listeners) source.off(signal, listener)
  }
}
