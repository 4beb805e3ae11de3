/**
 * Signals of a training run. SIGINT, SIGTERM and SIGUSR1 end it at a checkpoint of the current step (exit 75), a second SIGINT
 * at once (130); SIGUSR2 writes a checkpoint and goes on. SIGHUP (logs were rotated, or the terminal was closed) has the log files
 * made where they are missing; SIGPIPE (a closed pager) does nothing.
 */
import { EXIT } from './exit.js'

export interface SignalActions {
  /** Ends the run after the step in work, with a checkpoint. Called once. */
  stop(signal: NodeJS.Signals): void
  /** Writes a checkpoint and goes on. */
  checkpoint(): void
  /** Log files that were moved away are begun anew. */
  reopenLogs(): void
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

type Held = NodeJS.Signals[] & { release(): void }
let held: Held | undefined

/**
 * For the first lines of the process: signals wait here until `handleSignals` takes them, so that one that comes while modules
 * are loaded ends the run as any other. A second SIGINT ends the process.
 */
export function holdSignals(source: SignalSource = process, exit: (code: number) => void = process.exit): void {
  const waiting: NodeJS.Signals[] = []
  const listeners = SIGNALS.map((signal): [NodeJS.Signals, () => void] => [
    signal,
    () => {
      if (signal === 'SIGINT' && waiting.includes('SIGINT')) exit(EXIT.secondInterrupt)
      waiting.push(signal)
    },
  ])
  for (const [signal, listener] of listeners) source.on(signal, listener)
  held = Object.assign(waiting, {
    release() {
      for (const [signal, listener] of listeners) source.off(signal, listener)
    },
  })
}

const SIGNALS: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGUSR1', 'SIGUSR2', 'SIGHUP', 'SIGPIPE']

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
          actions.now(EXIT.killed, `no checkpoint could be written within ${graceMs / 1e3} s; what was saved before is kept`)
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
    ['SIGHUP', () => actions.reopenLogs()],
    ['SIGPIPE', () => {}],
  ]
  for (const [signal, listener] of listeners) source.on(signal, listener)
  const before = held
  held = undefined
  before?.release()
  for (const signal of before ?? []) listeners.find(([name]) => name === signal)?.[1]()
  return () => {
    clearTimeout(timer)
    for (const [signal, listener] of listeners) source.off(signal, listener)
  }
}
