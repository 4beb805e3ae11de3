import { EventEmitter } from 'node:events'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { handleSignals, holdSignals } from '../../ts/cli/signals.js'

function rig(graceMs = 1000, source = new EventEmitter()) {
  const calls: string[] = []
  const release = handleSignals(
    {
      stop: (signal) => calls.push(`stop ${signal}`),
      checkpoint: () => calls.push('checkpoint'),
      reopenLogs: () => calls.push('reopen'),
      now: (code) => calls.push(`exit ${code}`),
      note: () => {},
    },
    () => graceMs,
    source as never,
  )
  return { source, calls, release }
}

describe('signals of a run', () => {
  afterEach(() => {
    vi.useRealTimers()
  })

  it('the first Ctrl-C stops at a checkpoint, the second ends at once with 130', () => {
    const { source, calls } = rig()
    source.emit('SIGINT')
    expect(calls).toEqual(['stop SIGINT'])
    source.emit('SIGINT')
    expect(calls).toEqual(['stop SIGINT', 'exit 130'])
  })

  it.each(['SIGTERM', 'SIGUSR1'])('%s stops once', (signal) => {
    const { source, calls, release } = rig()
    source.emit(signal)
    source.emit(signal)
    release()
    expect(calls).toEqual([`stop ${signal}`])
  })

  it('SIGUSR2 writes a checkpoint each time', () => {
    const { source, calls } = rig()
    source.emit('SIGUSR2')
    source.emit('SIGUSR2')
    expect(calls).toEqual(['checkpoint', 'checkpoint'])
  })

  it('SIGHUP reopens the logs and ends nothing, SIGPIPE does nothing', () => {
    const { source, calls } = rig()
    source.emit('SIGHUP')
    source.emit('SIGPIPE')
    source.emit('SIGHUP')
    expect(calls).toEqual(['reopen', 'reopen'])
  })

  it('SIGTERM gives up with 143 when the grace is over', () => {
    vi.useFakeTimers()
    const { source, calls } = rig(25_000)
    source.emit('SIGTERM')
    vi.advanceTimersByTime(24_999)
    expect(calls).toEqual(['stop SIGTERM'])
    vi.advanceTimersByTime(1)
    expect(calls).toEqual(['stop SIGTERM', 'exit 143'])
  })

  it('those that came before the command had its handlers are not lost', () => {
    const source = new EventEmitter()
    const exits: number[] = []
    holdSignals(source as never, (code) => exits.push(code))
    source.emit('SIGUSR2')
    source.emit('SIGTERM')
    source.emit('SIGHUP')
    expect(rig(1000, source).calls).toEqual(['checkpoint', 'stop SIGTERM', 'reopen'])
    source.emit('SIGINT')
    expect(exits).toEqual([])
    expect(rig(1000, source).calls).toEqual([])
  })

  it('a second Ctrl-C before that ends at once with 130', () => {
    const source = new EventEmitter()
    const exits: number[] = []
    holdSignals(source as never, (code) => exits.push(code))
    source.emit('SIGINT')
    expect(exits).toEqual([])
    source.emit('SIGINT')
    expect(exits).toEqual([130])
    expect(rig(1000, source).calls.slice(0, 1)).toEqual(['stop SIGINT'])
  })

  it('one that comes when the command has ended changes nothing; a second Ctrl-C then ends the process', () => {
    const source = new EventEmitter()
    const exits: number[] = []
    holdSignals(source as never, (code) => exits.push(code))
    const { calls, release } = rig(1000, source)
    release()
    for (const signal of ['SIGTERM', 'SIGUSR2', 'SIGINT']) expect(source.emit(signal)).toBe(true)
    expect([calls, exits]).toEqual([[], []])
    source.emit('SIGINT')
    expect([calls, exits]).toEqual([[], [130]])
  })

  it('nothing is left behind', () => {
    vi.useFakeTimers()
    const { source, calls, release } = rig(10)
    source.emit('SIGTERM')
    release()
    vi.advanceTimersByTime(100)
    expect(calls).toEqual(['stop SIGTERM'])
    expect(source.eventNames()).toEqual([])
  })
})
