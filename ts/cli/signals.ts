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
  /** Ends the process now, whatever is in work; the reason is told first, with what is left of the run. */
  now(exitCode: number, reason: string): void
  /** Of the first SIGINT: tells that a second one ends at once. */
  note(text: string): void
}

/** `process`, or an emitter in tests. */
export interface SignalSource {
  on(signal: NodeJS.Signals, listener: () => void): unknown
  off(signal: NodeJS.Signals, listener: () => void): unknown
}

interface Held {
  readonly waiting: NodeJS.Signals[]
  /** 'waiting': nobody handles them yet; 'handled': the command does; 'over': it has ended, the process is about to. */
  state: 'waiting' | 'handled' | 'over'
}
let held: Held | undefined

/**
 * For a process that runs one command: from its first lines on signals wait here until `handleSignals` takes them, so that one
 * that comes while modules are loaded ends the run like every later one; one that comes when the command has ended changes nothing
 * any more. A second SIGINT in either time ends the process.
 */
export function holdSignals(source: SignalSource = process, exit: (code: number) => void = process.exit): void {
  const mine: Held = { waiting: [], state: 'waiting' }
  for (const signal of SIGNALS) {
    source.on(signal, () => {
      if (mine.state === 'handled') return
      if (signal === 'SIGINT' && mine.waiting.includes('SIGINT')) exit(EXIT.secondInterrupt)
      mine.waiting.push(signal)
    })
  }
  held = mine
}

const SIGNALS: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGUSR1', 'SIGUSR2', 'SIGHUP', 'SIGPIPE']

/** Installs the handlers; the returned function takes them away. `grace`: the milliseconds SIGTERM gives for the checkpoint, asked when it comes. */
export function handleSignals(actions: SignalActions, grace: () => number, source: SignalSource = process): () => void {
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
        const graceMs = grace()
        timer ??= setTimeout(() => {
          actions.now(EXIT.killed, `no checkpoint could be written within ${graceMs / 1e3} s`)
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
  if (before) before.state = 'handled'
  for (const signal of before?.waiting.splice(0) ?? []) listeners.find(([name]) => name === signal)?.[1]()
  return () => {
    clearTimeout(timer)
    if (before) before.state = 'over'
    for (const [signal, listener] of listeners) source.off(signal, listener)
  }
}
