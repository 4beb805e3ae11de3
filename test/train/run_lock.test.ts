/** A run folder has one writer: others are refused, and what a killed one left behind holds nobody up. */
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, it } from 'vitest'
import { createModel } from '../../ts/model.js'
import { LOCK_FILE, RunLock } from '../../ts/train/run_lock.js'
import { Trainer } from '../../ts/train/trainer.js'
import { effnet } from '../cli/helpers/capture.js'
import { workplace } from '../cli/helpers/folders.js'
import { spawnEffnet } from '../cli/helpers/spawn.js'
import { smallRuns } from './helpers/small_run.js'

const w = workplace()
afterAll(() => w.remove())
const small = smallRuns()
let made = 0
const fresh = (): string => {
  const dir = w.at(`run${made++}`)
  mkdirSync(dir)
  return dir
}
const lockOf = (dir: string): string => path.join(dir, LOCK_FILE)
const refused = (says = /./) => expect.objectContaining({ code: 'EFF_RUN_EXISTS', message: expect.stringMatching(says) })

/** The lock of a process that is not there. */
function stale(dir: string): void {
  const { pid } = spawnSync(process.execPath, ['--version'])
  writeFileSync(lockOf(dir), JSON.stringify({ id: 'dead', pid, host: os.hostname(), started: '1', since: 'then' }))
}

describe('the lock of a run folder', () => {
  it('is one process’s until it gives it back', async () => {
    const dir = fresh()
    const lock = await RunLock.take(dir)
    await expect(RunLock.take(dir)).rejects.toThrow(refused(new RegExp(`process ${process.pid} on .* is training here`)))
    await lock.release()
    expect(readdirSync(dir)).toEqual([])
    const again = await RunLock.take(dir)
    await lock.release()
    expect(existsSync(lockOf(dir))).toBe(true)
    await again.release()
  })

  it.each([
    ['a process that is gone', stale],
    ['a process whose pid is another’s now', (dir: string) => mine(dir, { started: '1' })],
    ['a crash while it was written', (dir: string) => writeFileSync(lockOf(dir), '')],
  ])('of %s is taken over', async (_, leave) => {
    const dir = fresh()
    leave(dir)
    const lock = await RunLock.take(dir)
    expect(readdirSync(dir)).toEqual([LOCK_FILE])
    await lock.release()
  })

  function mine(dir: string, more: object): void {
    const holder = { id: 'x', pid: process.pid, host: os.hostname(), started: '', since: '2020-01-01T00:00:00Z' }
    writeFileSync(lockOf(dir), JSON.stringify({ ...holder, ...more }))
  }

  it('of another host is respected, and the mend says how to remove it', async () => {
    const dir = fresh()
    mine(dir, { host: 'elsewhere' })
    const take = RunLock.take(dir)
    await expect(take).rejects.toThrow(refused(/on elsewhere is training here since 2020/))
    await expect(take).rejects.toMatchObject({ hint: expect.stringContaining(`rm ${lockOf(dir)}`) })
  })

  it('of a dead process goes to one of many, whoever comes first', async () => {
    for (let round = 0; round < 10; round++) {
      const dir = fresh()
      if (round % 2 === 0) stale(dir)
      const all = await Promise.allSettled(Array.from({ length: 8 }, () => RunLock.take(dir)))
      const won = all.filter((r) => r.status === 'fulfilled')
      expect(won).toHaveLength(1)
      for (const lost of all) if (lost.status === 'rejected') expect(lost.reason).toEqual(refused())
      await won[0]!.value.release()
      expect(readdirSync(dir)).toEqual([])
    }
  })

  it('of a dead process goes to one of many processes', async () => {
    const dir = fresh()
    stale(dir)
    const child = path.join(path.dirname(fileURLToPath(import.meta.url)), 'helpers/lock_child.ts')
    const children = Array.from({ length: 3 }, () => {
      const started = spawn(process.execPath, ['--import', 'tsx', child, dir], { stdio: ['pipe', 'pipe', 'inherit'] })
      const ended = new Promise((resolve) => started.on('close', resolve))
      const next = (): Promise<string> => new Promise((resolve) => started.stdout.once('data', (d) => resolve(String(d))))
      return { started, ended, next }
    })
    await Promise.all(children.map((c) => c.next()))
    const answers = Promise.all(children.map((c) => c.next()))
    for (const { started } of children) started.stdin.write('go\n')
    expect((await answers).sort()).toEqual(['EFF_RUN_EXISTS', 'EFF_RUN_EXISTS', 'taken'])
    for (const { started } of children) started.stdin.end()
    await Promise.all(children.map((c) => c.ended))
    expect(JSON.parse(readFileSync(lockOf(dir), 'utf8')).id).not.toBe('dead')
    await (await RunLock.take(dir)).release()
  })
})

describe('two runs in one folder', () => {
  it('of one program: the second is refused', async () => {
    const { data, model, out } = await small()
    await using second = await createModel('efficientnet_b0', { classes: data.classes, imageSize: 32, threads: 1 })
    const outDir = path.join(out, 'new')
    const options = { outDir, maxEpochs: 1, batchSize: 4, workers: 1 }
    const runs = await Promise.allSettled([model, second].map((m) => new Trainer({ ...options, model: m }).fit(data)))
    const statuses = runs.map((r) => (r.status === 'fulfilled' ? r.value.status : r.reason.code))
    expect(statuses.sort()).toEqual(['EFF_RUN_EXISTS', 'finished'])
    expect(existsSync(lockOf(outDir))).toBe(false)
  })

  it('of two commands: --resume is refused while the first is on, and goes on when it was killed', async () => {
    const data = w.dataset('data')
    const out = w.at('shared')
    const words = ['train', '--data', data, '--model', 'efficientnet_b0', '--image-size', '32', '--batch-size', '4', '--json']
    const run = [...words, '--out', out, '--resume', '--threads', '1', '--checkpoint-every', '1']
    const first = spawnEffnet([...run, '--epochs', '2000'])
    await first.line(/"checkpoint"/)
    // It is there and does nothing: the machine is the other's.
    first.child.kill('SIGSTOP')
    const second = await effnet([...run, '--epochs', '2000'])
    expect(second.code, second.stderr).toBe(73)
    expect(second.stderr).toContain(`process ${first.child.pid} on ${os.hostname()} is training here`)
    expect(second.stderr).toContain(`Mend: wait for it, or end it with a checkpoint: kill ${first.child.pid}`)
    first.child.kill('SIGKILL')
    expect((await first.done).signal).toBe('SIGKILL')
    expect(existsSync(lockOf(out))).toBe(true)
    const { step } = JSON.parse(readFileSync(path.join(out, 'checkpoints/last/state.json'), 'utf8')) as { step: number }
    const third = await effnet([...run, '--epochs', '2000', '--max-steps', String(step + 1)])
    expect(third.code, third.stderr).toBe(0)
    expect(existsSync(lockOf(out))).toBe(false)
  })
})
