/** The program that takes the place of one that has lost the GPU. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { rerun, rerunWords, restartWords } from '../../ts/cli/rerun.js'
import type { Ui } from '../../ts/cli/ui.js'
import { EffnetError } from '../../ts/errors.js'
import { StringSink } from './helpers/capture.js'

let dir: string
beforeEach(() => {
  dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-rerun-'))
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

it('has its number, streams, words and variables, and nothing else that was open', async () => {
  const binding = path.resolve(fileURLToPath(import.meta.url), '../../../ts/binding.ts')
  const after = `
    const { readdirSync, readlinkSync } = require('node:fs')
    const files = readdirSync('/proc/self/fd').flatMap((fd) => { try { return [readlinkSync('/proc/self/fd/' + fd)] } catch { return [] } })
    console.log(JSON.stringify({ pid: process.pid, words: process.argv.slice(1), env: process.env, files }))
    process.on('SIGTERM', () => process.exit(75))
    process.kill(process.pid, 'SIGTERM')
    setTimeout(() => process.exit(9), 20000)`
  const before = `
    import { openSync } from 'node:fs'
    const { binding } = await import(${JSON.stringify(binding)})
    openSync(${JSON.stringify(path.join(dir, 'held'))}, 'w')
    process.on('SIGTERM', () => process.exit(1))
    binding().replaceProcess(process.execPath, [process.execPath, '-e', ${JSON.stringify(after)}, 'a word'], ['NAME=a value'])`
  const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', before], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const [said, [code]] = await Promise.all([text(child.stdout), once(child, 'close')])
  const { pid, words, env, files } = JSON.parse(said) as { pid: number; words: string[]; env: object; files: string[] }
  expect({ pid, words, env }).toEqual({ pid: child.pid, words: ['a word'], env: { NAME: 'a value' } })
  expect(files.filter((file) => file.endsWith('/held'))).toEqual([])
  expect(code).toBe(75)
}, 60_000)

it('leaves what is open as it was where the program does not start', async () => {
  const binding = path.resolve(fileURLToPath(import.meta.url), '../../../ts/binding.ts')
  const program = `
    import { openSync, readdirSync, readFileSync } from 'node:fs'
    const { binding } = await import(${JSON.stringify(binding)})
    openSync(${JSON.stringify(path.join(dir, 'held'))}, 'w')
    const flags = () => readdirSync('/proc/self/fdinfo').flatMap((fd) => {
      try { return [fd + readFileSync('/proc/self/fdinfo/' + fd, 'utf8').match(/flags:.*/)[0]] } catch { return [] }
    })
    const before = flags()
    let code
    try { binding().replaceProcess(process.execPath, [process.execPath, 'x'.repeat(1 << 18)], []) } catch (error) { code = error.code }
    process.stdout.write(JSON.stringify({ before, after: flags(), code }))`
  const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', program], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  const { before, after, code } = JSON.parse(await text(child.stdout)) as { before: string[]; after: string[]; code: string }
  expect(code).toBe('EFF_IO')
  expect(before.length).toBeGreaterThan(3)
  expect(after).toEqual(before)
}, 60_000)

it('is told what a run’s folder does not keep', () => {
  const none = { workers: undefined, threads: undefined }
  expect(rerunWords('runs/a', none, { json: false, quiet: false, verbosity: 0 })).toEqual(['train', '--resume', 'runs/a'])
  expect(rerunWords('runs/a', { workers: 3, threads: 2 }, { json: true, quiet: true, verbosity: 2 }).slice(3)).toEqual(
    '--workers 3 --threads 2 --json -q -vv'.split(' '),
  )
})

it('begins a run without a checkpoint as it was begun, in its folder', () => {
  const argv = ['train', '--data', 'photos', '--seed', '4', '--json']
  expect(restartWords(argv, '/runs/a')).toEqual([...argv, '--out', '/runs/a'])
  expect(restartWords(argv, '')).toEqual(argv)
})

it('is tried where ops are not waited for, and leaves the fault the last word where it does not start', async () => {
  mkdirSync(path.join(dir, 'checkpoints/last'), { recursive: true })
  const warned: string[] = []
  const ui = {
    json: false,
    quiet: false,
    verbosity: 0,
    warn: (key: string, message: string) => warned.push(`${key}: ${message}`),
    object: () => undefined,
  } as unknown as Ui
  const fault = new EffnetError('EFF_GPU_FAULT', 'GPU fault: lost')
  const io = { stdout: new StringSink(), stderr: new StringSink() }
  const tried = (sync?: string, run: { from?: string; saved?: boolean } = {}, stopped = () => false) =>
    rerun({ outDir: dir, from: undefined, saved: false, ...run }, { workers: 1, threads: 1 }, fault, {
      env: sync === undefined ? {} : { EFFNET_CUDA_SYNC: sync },
      io,
      ui,
      argv: ['train'],
      stopped,
    })
  const { execPath } = process
  process.execPath = path.join(dir, 'no-such-node')
  try {
    await tried()
    writeFileSync(
      path.join(dir, 'checkpoints/last/manifest.json'),
      JSON.stringify({ format: 'effnet-checkpoint', version: 1, step: 1, files: {} }),
    )
    await tried('0')
    const started = /^gpu-fault-rerun: the fresh process could not be started: .*no-such-node: No such file/
    expect(warned).toEqual([
      expect.stringMatching(
        /^gpu-fault: EFF_GPU_FAULT {2}GPU fault: lost; there is no checkpoint yet, so the run begins again in a fresh/,
      ),
      expect.stringMatching(started),
      expect.stringMatching(/^gpu-fault: .*; the run goes on from \S*checkpoints\/last in a fresh process, slowly/),
      expect.stringMatching(started),
    ])
    await tried('1')
    expect(warned).toHaveLength(4)
    // What resumes goes on from the checkpoint before one that is damaged.
    writeFileSync(path.join(dir, 'checkpoints/last/manifest.json'), '{')
    await tried()
    expect(warned[4]).toMatch(/the run goes on from \S*checkpoints\/last in a fresh process/)
    // One that was told to begin elsewhere does so again, until it has a checkpoint of its own.
    await tried('0', { from: path.join(dir, 'checkpoints/best') })
    expect(warned[6]).toMatch(/the run goes on from \S*checkpoints\/best again in a fresh process/)
    await tried('0', { from: path.join(dir, 'checkpoints/best'), saved: true })
    expect(warned[8]).toMatch(/the run goes on from \S*checkpoints\/last in a fresh process/)
    // A signal that came while this was found out, or while it was told.
    const before = warned.length
    await tried('0', {}, () => true)
    expect(warned).toHaveLength(before)
    let asked = 0
    await tried('0', {}, () => ++asked > 1)
    expect(warned.slice(before)).toEqual([expect.stringMatching(/^gpu-fault: /)])
  } finally {
    process.execPath = execPath
  }
})
