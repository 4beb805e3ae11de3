/**
 * One process at a time writes to a run folder. Who does has a lock file there, made so that only one can make it; it names the
 * process, so that what a killed one left behind holds nobody up.
 */
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { open, readFile, rm } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { EffnetError } from '../errors.js'
import { ioError, json, makeFolders, readOptional } from './files.js'
import type { RunFolder } from './run_folder.js'
import type { FitOptions } from './types.js'

export const LOCK_FILE = '.lock'

interface Holder {
  /** Of this one lock: no other has it again. */
  id: string
  pid: number
  host: string
  /** When the process started, in clock ticks since boot: another one may have its pid later. Null where /proc does not tell. */
  started: string | null
  since: string
}

/** A lock is written in one go right after it was made; what is still unreadable after this was cut off by a crash. */
const READS = 20
const READ_EVERY_MS = 50

/** Of a process that is there and has not ended. */
async function startOf(pid: number): Promise<string | null> {
  try {
    // The second field, the name in brackets, may hold anything.
    const fields = (await readFile(`/proc/${pid}/stat`, 'utf8')).replace(/^.*\) /s, '').split(' ')
    return fields[0] === 'Z' || fields[0] === 'X' ? null : (fields[19] ?? null)
  } catch {
    return null
  }
}

async function readHolder(file: string): Promise<Holder | 'gone' | 'broken'> {
  for (let n = 0; n < READS; n++) {
    const text = await readOptional(file)
    if (text === undefined) return 'gone'
    try {
      const holder = JSON.parse(text) as Holder
      if (typeof holder.id === 'string' && Number.isInteger(holder.pid)) return holder
    } catch {
      // being written
    }
    await setTimeout(READ_EVERY_MS)
  }
  return 'broken'
}

/** Of another host nobody here can tell. */
const holds = async (h: Holder): Promise<boolean> =>
  h.host !== os.hostname() || (h.started !== null && (await startOf(h.pid)) === h.started)

function held(dir: string, file: string, { pid, host, since }: Holder): EffnetError {
  const here = host === os.hostname()
  return new EffnetError('EFF_RUN_EXISTS', `${dir}: process ${pid} on ${host} is training here since ${since}`, {
    hint: here
      ? `wait for it, or end it with a checkpoint: kill ${pid}`
      : `wait for it; if there is no such process on ${host} any more: rm ${file}`,
    details: { path: dir, pid, host, since, lock: file },
  })
}

export class RunLock {
  private constructor(
    private readonly file: string,
    private readonly id: string,
  ) {}

  /**
   * Makes the folder where there is none.
   * @throws EFF_RUN_EXISTS where a process has it, which may be this one; EFF_IO, EFF_CKPT_NO_SPACE
   */
  static async take(dir: string): Promise<RunLock> {
    const file = path.join(dir, LOCK_FILE)
    const id = randomBytes(8).toString('hex')
    const started = await startOf(process.pid)
    const since = new Date().toISOString()
    try {
      await makeFolders(dir)
      await makeLock(dir, file, { id, pid: process.pid, host: os.hostname(), started, since })
    } catch (cause) {
      throw ioError(cause, file)
    }
    return new RunLock(file, id)
  }

  /** Idempotent; a lock that is another's by now (somebody removed ours) stays. */
  async release(): Promise<void> {
    const holder = await readHolder(this.file).catch(() => 'gone' as const)
    if (typeof holder === 'object' && holder.id === this.id) await rm(this.file, { force: true }).catch(() => undefined)
  }
}

async function makeLock(dir: string, file: string, me: Holder): Promise<void> {
  while (!(await create(file, me))) {
    const holder = await readHolder(file)
    if (holder === 'gone') continue
    if (holder !== 'broken' && (await holds(holder))) throw held(dir, file, holder)
    // Two may find a dead process's lock: only who has the claim on this very lock removes it, and not what came in its place.
    const claim = `${file}.${holder === 'broken' ? holder : holder.id}`
    await makeLock(dir, claim, me)
    try {
      const now = await readHolder(file)
      const same = typeof now === 'object' && typeof holder === 'object' ? now.id === holder.id : now === holder
      if (same) await rm(file, { force: true })
    } finally {
      await rm(claim, { force: true })
    }
  }
}

/** False where there is one. */
async function create(file: string, me: Holder): Promise<boolean> {
  const handle = await open(file, 'wx').catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'EEXIST') return undefined
    throw cause
  })
  if (!handle) return false
  try {
    await handle.writeFile(json(me))
  } catch (cause) {
    await rm(file, { force: true })
    throw cause
  } finally {
    await handle.close()
  }
  return true
}

/** Before the folder is read: looking for a checkpoint there settles what a crash left. Undefined where there is none to look for. */
export async function lockFolder(folder: RunFolder, resume: FitOptions['resume']): Promise<RunLock | undefined> {
  if (resume === undefined && (await folder.isRun())) await folder.open(false)
  if (resume !== undefined && resume !== 'auto' && !existsSync(folder.dir)) return undefined
  return RunLock.take(folder.dir)
}
