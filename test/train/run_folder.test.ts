import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest'
import { CsvLogger, EarlyStopping, JsonlLogger } from '../../ts/train/callbacks.js'
import { startFolder } from '../../ts/train/checkpoint_folder.js'
import { EventHub } from '../../ts/train/events.js'
import { logWriteCount } from '../../ts/train/fault.js'
import { RunFolder } from '../../ts/train/run_folder.js'
import type { EpochEvent, StepEvent, TrainerContext, TrainerEvent } from '../../ts/train/types.js'
import { content, folderIo } from './helpers/folder_io.js'

const root = mkdtempSync(path.join(os.tmpdir(), 'effnet-run-'))
afterAll(() => rmSync(root, { recursive: true, force: true }))
let made = 0
const fresh = () => new RunFolder(path.join(root, String(made++)))

const stops: string[] = []
const ctx = { stop: (reason: string) => stops.push(reason) } as unknown as TrainerContext
const epochEvent = (epoch: number, step: number, metrics: Record<string, number>): EpochEvent => ({
  type: 'epoch',
  epoch,
  step,
  metrics,
  best: false,
  elapsedMs: 1500,
})

describe('a run folder', () => {
  it('is not overwritten', async () => {
    const folder = fresh()
    await folder.open(false)
    await expect(folder.open(false)).rejects.toThrow(expect.objectContaining({ code: 'EFF_RUN_EXISTS' }))
    await folder.open(true)
  })

  it('whose run failed before its first checkpoint is free again', async () => {
    const folder = fresh()
    await folder.open(false)
    await folder.writeConfig({}, {})
    const status = { epoch: 0, step: 0, best: null, message: 'EFF_OOM: too large' } as const
    await folder.writeStatus({ ...status, state: 'running' })
    expect(await folder.isRun()).toBe(true)
    await folder.writeStatus({ ...status, state: 'failed' })
    expect(await folder.isRun()).toBe(false)
    await folder.open(false)
    await startFolder(folderIo, folder.last, content(1, 'weights')).then(({ done }) => done)
    expect(await folder.isRun()).toBe(true)
    rmSync(path.join(folder.last, 'manifest.json'))
    expect(await folder.isRun()).toBe(false)
  })

  it('may hold files that are no run', async () => {
    const folder = fresh()
    mkdirSync(folder.dir)
    writeFileSync(folder.file('notes.txt'), 'mine')
    await folder.open(false)
    expect(await folder.isRun()).toBe(true)
  })

  it('says where it stands', async () => {
    const folder = fresh()
    await folder.open(false)
    await folder.writeStatus({ state: 'running', epoch: 1, step: 7, best: null, message: null })
    expect(await folder.readStatus()).toMatchObject({ state: 'running', epoch: 1, step: 7 })
    writeFileSync(folder.file('status.json'), '{')
    expect(await folder.readStatus()).toBeUndefined()
  })

  it('keeps the exit code of the process that ended it, and nothing is written after that', async () => {
    const folder = fresh()
    await folder.open(false)
    const status = { epoch: 1, step: 7, best: null, message: null } as const
    await folder.writeStatus({ ...status, state: 'running' })
    const late = folder.writeStatus({ ...status, step: 8, state: 'running' })
    await Promise.all([folder.conclude(130, 'second interrupt'), late])
    await folder.writeStatus({ ...status, step: 9, state: 'running' })
    const ended = { state: 'interrupted', step: 8, exitCode: 130, message: 'second interrupt' }
    expect(await folder.readStatus()).toMatchObject(ended)
    const finished = new RunFolder(folder.dir)
    await finished.writeStatus({ ...status, state: 'finished', message: 'epochs' })
    await finished.conclude(0)
    expect(await finished.readStatus()).toMatchObject({ state: 'finished', exitCode: 0, message: 'epochs' })
  })

  it('quotes what CSV must quote', async () => {
    const folder = fresh()
    await folder.open(false)
    await folder.writeBadFiles([{ path: 'a,b.jpg', code: 'EFF_DATA_DECODE', message: 'says "no"' }])
    expect(readFileSync(folder.file('bad_files.csv'), 'utf8')).toBe(
      'path,code,message\n"a,b.jpg",EFF_DATA_DECODE,"says ""no"""\n',
    )
  })

  it('lists the unreadable files of every process of a run once, of a new run its own', async () => {
    const folder = fresh()
    await folder.open(false)
    const bad = (name: string, message = 'torn') => ({ path: name, code: 'EFF_DATA_DECODE', message }) as const
    const listed = () => readFileSync(folder.file('bad_files.csv'), 'utf8').split('EFF_DATA_DECODE').length - 1
    await folder.writeBadFiles([bad('a,b.jpg', 'two\nlines'), bad('c.jpg')])
    await folder.writeBadFiles([bad('a,b.jpg'), bad('d.jpg')], true)
    const rows = 'c.jpg,EFF_DATA_DECODE,torn\n"a,b.jpg",EFF_DATA_DECODE,torn\nd.jpg,EFF_DATA_DECODE,torn\n'
    expect(readFileSync(folder.file('bad_files.csv'), 'utf8')).toBe(`path,code,message\n${rows}`)
    await folder.writeBadFiles([], true)
    expect(listed()).toBe(3)
    await folder.writeBadFiles([bad('e.jpg')])
    expect(listed()).toBe(1)
    await folder.writeBadFiles([])
    expect(existsSync(folder.file('bad_files.csv'))).toBe(false)
  })
})

describe('logs', () => {
  it('of a resumed run lose what lies behind its step, and half-written lines', async () => {
    const folder = fresh()
    await folder.open(false)
    const csv = new CsvLogger(folder, ['train/loss', 'val/top1'])
    await csv.begin(undefined)
    await csv.onEpochEnd(ctx, epochEvent(1, 10, { 'train/loss': 2.5, 'val/top1': 40 }))
    await csv.onEpochEnd(ctx, epochEvent(2, 20, { 'train/loss': 2 }))
    await csv.onEpochEnd(ctx, epochEvent(3, 30, { 'train/loss': 1 }))
    const jsonl = new JsonlLogger(folder, 5)
    await jsonl.begin(undefined)
    for (let step = 1; step <= 30; step++) {
      await jsonl.onStepEnd(ctx, { step, stepInEpoch: 1, stepsPerEpoch: 10, elapsedMs: 0, loss: 1 } as StepEvent)
    }
    writeFileSync(folder.file('metrics.csv'), `${readFileSync(folder.file('metrics.csv'), 'utf8')}4,4`)
    writeFileSync(folder.file('steps.jsonl'), `${readFileSync(folder.file('steps.jsonl'), 'utf8')}{"step": 3`)

    await csv.begin({ epoch: 2, step: 20 })
    await jsonl.begin({ epoch: 2, step: 20 })
    expect(readFileSync(folder.file('metrics.csv'), 'utf8')).toBe(
      'epoch,step,time_s,train/loss,val/top1\n1,10,1.500,2.5,40\n2,20,1.500,2,\n',
    )
    const steps = readFileSync(folder.file('steps.jsonl'), 'utf8').trim().split('\n')
    expect(steps.map((line) => JSON.parse(line).step)).toEqual([5, 10, 15, 20])
  })

  it('get the columns that a resumed run measures beside those they had', async () => {
    const folder = fresh()
    await folder.open(false)
    const before = new CsvLogger(folder, ['train/loss', 'val_ema/loss', 'lr'])
    await before.begin(undefined)
    await before.onEpochEnd(ctx, epochEvent(1, 10, { 'train/loss': 3, 'val_ema/loss': 4, lr: 1 }))
    await before.onEpochEnd(ctx, epochEvent(2, 20, { 'train/loss': 2, 'val_ema/loss': 3, lr: 0.5 }))
    const after = new CsvLogger(folder, ['train/loss', 'val/loss', 'lr'])
    await after.begin({ epoch: 1, step: 10 })
    await after.onEpochEnd(ctx, epochEvent(2, 20, { 'train/loss': 2, 'val/loss': 5, lr: 0.5 }))
    expect(readFileSync(folder.file('metrics.csv'), 'utf8')).toBe(
      'epoch,step,time_s,train/loss,val_ema/loss,lr,val/loss\n1,10,1.500,3,4,1,\n2,20,1.500,2,,0.5,5\n',
    )
  })

  it('that were moved away begin anew with their first line, at once when they are reopened', async () => {
    const folder = fresh()
    await folder.open(false)
    const csv = new CsvLogger(folder, ['lr'])
    const jsonl = new JsonlLogger(folder, 1)
    await csv.begin(undefined)
    await jsonl.begin(undefined)
    await csv.onEpochEnd(ctx, epochEvent(1, 10, { lr: 1 }))
    await csv.reopen()
    const text = (name: string) => readFileSync(folder.file(name), 'utf8')
    expect(text('metrics.csv')).toBe('epoch,step,time_s,lr\n1,10,1.500,1\n')
    for (const name of ['metrics.csv', 'steps.jsonl']) renameSync(folder.file(name), folder.file(`${name}.1`))
    await csv.reopen()
    await jsonl.reopen()
    expect(text('metrics.csv')).toBe('epoch,step,time_s,lr\n')
    expect(text('steps.jsonl')).toBe('')
    rmSync(folder.file('metrics.csv'))
    await csv.onEpochEnd(ctx, epochEvent(2, 20, { lr: 2 }))
    expect(text('metrics.csv')).toBe('epoch,step,time_s,lr\n2,20,1.500,2\n')
    expect(text('metrics.csv.1')).toBe('epoch,step,time_s,lr\n1,10,1.500,1\n')
  })

  it('of a run that was killed while their first line was written begin with it', async () => {
    const folder = fresh()
    await folder.open(false)
    writeFileSync(folder.file('metrics.csv'), 'epoch,st')
    await new CsvLogger(folder, ['lr']).begin({ epoch: 0, step: 1 })
    await new JsonlLogger(folder, 5).begin({ epoch: 0, step: 1 })
    expect(readFileSync(folder.file('metrics.csv'), 'utf8')).toBe('epoch,step,time_s,lr\n')
    expect(readFileSync(folder.file('steps.jsonl'), 'utf8')).toBe('')
  })
})

describe('what cannot be written', () => {
  const at = (kind: string, from: number, on = '') => {
    vi.stubEnv('EFFNET_FAULT', `log:${logWriteCount() + from}${on}:${kind}`)
  }
  const watched = () => {
    const told: string[] = []
    const folder = new RunFolder(path.join(root, String(made++)), (code, message) => told.push(`${code} ${message}`))
    return { folder, told, text: (name: string) => readFileSync(folder.file(name), 'utf8') }
  }
  afterEach(() => {
    vi.unstubAllEnvs()
  })

  it.each(['enospc', 'eio', 'torn'])('of a log waits until it can be: each line once, one warning (%s)', async (kind) => {
    const { folder, told, text } = watched()
    await folder.open(false)
    const csv = new CsvLogger(folder, ['lr'])
    await csv.begin(undefined)
    at(kind, 2)
    for (const epoch of [1, 2, 3]) await csv.onEpochEnd(ctx, epochEvent(epoch, epoch, { lr: epoch }))
    expect(text('metrics.csv')).toBe('epoch,step,time_s,lr\n1,1,1.500,1\n2,2,1.500,2\n3,3,1.500,3\n')
    at(kind, 1, '+')
    for (const epoch of [4, 5]) await csv.onEpochEnd(ctx, epochEvent(epoch, epoch, { lr: epoch }))
    expect(text('metrics.csv')).toMatch(/\n3,3,1.500,3\n$/)
    vi.unstubAllEnvs()
    await folder.settleLogs()
    expect(text('metrics.csv')).toMatch(/\n3,3,1.500,3\n4,4,1.500,4\n5,5,1.500,5\n$/)
    const code = kind === 'eio' ? 'EFF_IO' : 'EFF_CKPT_NO_SPACE'
    expect(told).toEqual([1, 2].map(() => expect.stringMatching(`^${code} .*metrics.csv: .*the run goes on`)))
  })

  it('of the status is no news where the disk is known to be full', async () => {
    const status = { state: 'running', epoch: 0, step: 1, best: null, message: null } as const
    for (const known of [false, true]) {
      const { folder, told } = watched()
      await folder.open(false)
      await folder.writeStatus(status)
      at('enospc', 1, '+')
      if (known) folder.noteFull()
      await folder.writeStatus({ ...status, state: 'failed' })
      vi.unstubAllEnvs()
      expect(told).toHaveLength(known ? 0 : 1)
    }
  })

  it('of a log is told as lost at the end, with how much', async () => {
    const { folder, told } = watched()
    await folder.open(false)
    const jsonl = new JsonlLogger(folder, 1)
    at('enospc', 1, '+')
    for (const step of [1, 2, 3]) await jsonl.onStepEnd(ctx, { step, elapsedMs: 0 } as StepEvent)
    await folder.settleLogs()
    expect(told).toEqual([
      `EFF_CKPT_NO_SPACE ${folder.file('steps.jsonl')}: no space left on the disk; the run goes on, its lines are kept until they can be written`,
      `log-lost ${folder.file('steps.jsonl')}: 3 lines could not be written`,
    ])
  })

  it('of more than may wait loses that, and is told again when writing has gone well between', async () => {
    const { folder, told } = watched()
    await folder.open(false)
    at('eio', 1, '+')
    await folder.append('steps.jsonl', `${'x'.repeat(5 << 20)}\n`)
    vi.unstubAllEnvs()
    await folder.append('steps.jsonl', 'written\n')
    at('eio', 1, '+')
    await folder.append('steps.jsonl', 'late\n')
    vi.unstubAllEnvs()
    await folder.settleLogs()
    expect(readFileSync(folder.file('steps.jsonl'), 'utf8')).toBe('written\nlate\n')
    const failed = expect.stringMatching(/^EFF_IO .*the run goes on/)
    expect(told).toEqual([failed, failed, `log-lost ${folder.file('steps.jsonl')}: 1 line could not be written`])
  })

  it('of the status ends a run that begins; later it is one warning, and the newest one is written when it can be', async () => {
    const { folder, told } = watched()
    await folder.open(false)
    const status = (step: number) => ({ state: 'running', epoch: 1, step, best: null, message: null }) as const
    at('enospc', 1, '+')
    await expect(folder.writeStatus(status(1))).rejects.toThrow(expect.objectContaining({ code: 'EFF_CKPT_NO_SPACE' }))
    vi.unstubAllEnvs()
    await folder.writeStatus(status(2))
    at('eio', 1, '+')
    await folder.writeStatus(status(3))
    await folder.writeStatus(status(4))
    await folder.conclude(75)
    expect(told).toEqual([expect.stringMatching(/^EFF_IO .*status.json: EIO.*the run goes on/)])
    vi.unstubAllEnvs()
    expect(await folder.readStatus()).toMatchObject({ step: 2 })
    await new RunFolder(folder.dir).conclude(75)
    expect(await folder.readStatus()).toMatchObject({ state: 'interrupted', exitCode: 75 })
  })
})

describe('early stopping', () => {
  it('ends the run after `patience` measured epochs without gain, also across a resume', () => {
    stops.length = 0
    const a = new EarlyStopping({ patience: 3, minDelta: 0.5 })
    a.onEpochEnd(ctx, epochEvent(0, 1, { 'val/top1': 50 }))
    a.onEpochEnd(ctx, epochEvent(1, 2, { 'val/top1': 50.4 }))
    a.onEpochEnd(ctx, epochEvent(2, 3, {}))
    a.onEpochEnd(ctx, epochEvent(3, 4, { 'val/top1': 49 }))
    expect(stops).toEqual([])
    const b = new EarlyStopping({ patience: 3, minDelta: 0.5 })
    b.load(JSON.parse(JSON.stringify(a.state())))
    b.onEpochEnd(ctx, epochEvent(4, 5, { 'val/top1': 50 }))
    expect(stops).toEqual(['early-stop'])
  })

  it('minimises losses', () => {
    stops.length = 0
    const a = new EarlyStopping({ monitor: 'val/loss', patience: 1 })
    a.onEpochEnd(ctx, epochEvent(0, 1, { 'val/loss': 2 }))
    a.onEpochEnd(ctx, epochEvent(1, 2, { 'val/loss': 1 }))
    expect(stops).toEqual([])
    a.onEpochEnd(ctx, epochEvent(2, 3, { 'val/loss': 1 }))
    expect(stops).toEqual(['early-stop'])
  })
})

describe('events', () => {
  const step = (n: number) => ({ type: 'step', step: n }) as StepEvent
  const drain = async (events: AsyncIterable<TrainerEvent>) => {
    const seen: TrainerEvent[] = []
    for await (const e of events) seen.push(e)
    return seen
  }

  it('reach every reader in order and end with the run', async () => {
    const hub = new EventHub()
    const [a, b] = [hub.subscribe(), hub.subscribe()]
    const waiting = drain(a)
    hub.emit(step(1))
    hub.emit({ type: 'end' })
    hub.emit(step(2))
    expect((await waiting).map((e) => e.type)).toEqual(['step', 'end'])
    expect((await drain(b)).map((e) => e.type)).toEqual(['step', 'end'])
  })

  it('of steps are dropped for a reader that sleeps, others are not', async () => {
    const hub = new EventHub()
    const slow = hub.subscribe()
    hub.emit({ type: 'warning', code: 'x', message: 'kept' })
    for (let i = 0; i < 5000; i++) hub.emit(step(i))
    hub.emit({ type: 'end' })
    const seen = await drain(slow)
    expect(seen[0]!.type).toBe('warning')
    expect(seen.at(-1)!.type).toBe('end')
    expect(seen.length).toBe(1002)
    expect(seen.at(-2)).toMatchObject({ step: 4999 })
  })

  it('stop for a reader that leaves', async () => {
    const hub = new EventHub()
    const reader = hub.subscribe()
    hub.emit(step(1))
    for await (const _ of reader) break
    hub.emit(step(2))
    expect((await reader.next()).done).toBe(true)
  })
})
