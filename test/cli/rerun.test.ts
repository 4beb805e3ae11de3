/** The process that goes on after a fault of the GPU, in the place of the one that had it. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { rerun, rerunWords, runAs } from '../../ts/cli/rerun.js'
import type { Ui } from '../../ts/cli/ui.js'

let dir: string
beforeEach(() => {
  dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-rerun-'))
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

const script = (text: string) => runAs(process.execPath, ['-e', text, path.join(dir, 'said')], process.env)
const said = () => readFileSync(path.join(dir, 'said'), 'utf8')

describe('a process in this one’s place', () => {
  it('gives its exit code, and 128 with the number of a signal', async () => {
    expect(await script('process.exit(75)')).toBe(75)
    expect(await script("process.kill(process.pid, 'SIGKILL')")).toBe(137)
    expect(await script("process.kill(process.pid, 'SIGTERM')")).toBe(143)
  })

  it.each(['SIGINT', 'SIGTERM', 'SIGUSR1', 'SIGUSR2', 'SIGHUP'] as const)('gets %s once, from here alone', async (signal) => {
    const before = process.listeners(signal)
    // Others that listen here would end the test.
    process.removeAllListeners(signal)
    const ended = script(`
      const { appendFileSync, readFileSync } = require('node:fs')
      const group = readFileSync('/proc/self/stat', 'utf8').split(') ')[1].split(' ')[2]
      const say = (text) => appendFileSync(process.argv[1], text + '\\n')
      process.on('${signal}', () => { say('${signal}'); setTimeout(() => process.exit(0), 100) })
      say(Number(group) === process.pid ? 'own group' : 'group of its parent')
      setTimeout(() => process.exit(9), 20000)`)
    try {
      await vi.waitFor(() => expect(said()).toBe('own group\n'), { timeout: 15_000 })
      process.emit(signal, signal)
      expect(await ended).toBe(0)
      expect(said()).toBe(`own group\n${signal}\n`)
      expect(process.listenerCount(signal)).toBe(0)
    } finally {
      for (const listener of before) process.on(signal, listener as () => void)
    }
  })
})

it('is told what a run’s folder does not keep', () => {
  const none = { workers: undefined, threads: undefined }
  expect(rerunWords('runs/a', none, { json: false, quiet: false, verbosity: 0 })).toEqual(['train', '--resume', 'runs/a'])
  expect(rerunWords('runs/a', { workers: 3, threads: 2 }, { json: true, quiet: true, verbosity: 2 }).slice(3)).toEqual(
    '--workers 3 --threads 2 --json -q -vv'.split(' '),
  )
})

it('is tried where ops are not waited for, and leaves the fault the last word where it does not start', async () => {
  mkdirSync(path.join(dir, 'checkpoints/last'), { recursive: true })
  writeFileSync(
    path.join(dir, 'checkpoints/last/manifest.json'),
    JSON.stringify({ format: 'effnet-checkpoint', version: 1, step: 1, files: {} }),
  )
  const warned: string[] = []
  const ui = { json: false, quiet: false, verbosity: 0, warn: (key: string) => warned.push(key) } as unknown as Ui
  const { execPath } = process
  process.execPath = path.join(dir, 'no-such-node')
  try {
    for (const sync of ['0', undefined])
      expect(
        await rerun(dir, { workers: 1, threads: 1 }, { env: sync === undefined ? {} : { EFFNET_CUDA_SYNC: sync }, ui }),
      ).toBeUndefined()
    expect(warned).toEqual(['gpu-fault', 'gpu-fault-rerun', 'gpu-fault', 'gpu-fault-rerun'])
    expect(await rerun(dir, { workers: 1, threads: 1 }, { env: { EFFNET_CUDA_SYNC: '1' }, ui })).toBeUndefined()
    expect(warned).toHaveLength(4)
  } finally {
    process.execPath = execPath
  }
})
