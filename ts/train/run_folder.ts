/** The folder of a run: what was asked, what came of it, and its checkpoints. All small files are replaced atomically. */
import { execFile } from 'node:child_process'
import { open, rm } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { binding } from '../binding.js'
import type { BadFile } from '../data/types.js'
import { EffnetError } from '../errors.js'
import type { Session } from '../runtime/session.js'
import { packageVersion } from '../version.js'
import { findFolder } from './checkpoint_folder.js'
import { logFault } from './fault.js'
import { appendWhole, csvLine, exists, ioError, json, makeFolders, readOptional, writeAll, writeAtomic } from './files.js'

export type RunState = 'running' | 'finished' | 'interrupted' | 'failed'

export interface RunStatus {
  state: RunState
  step: number
  epoch: number
  best: { metric: string; value: number; epoch: number; step: number } | null
  updated: string
  /** Of the process that ended the run; null while it runs, and where no command line ran it. */
  exitCode: number | null
  message: string | null
}

/** Any of these makes a folder a run. */
const MARKS = ['status.json', 'checkpoints', 'resolved.yaml', 'metrics.csv']

/** Environment variables that change results or speed; others may hold secrets. */
const ENV = /^(EFFNET_(?!.*(TOKEN|KEY|SECRET))|OMP_NUM_THREADS$|NODE_OPTIONS$|UV_THREADPOOL_SIZE$|CUDA_VISIBLE_DEVICES$)/

/** A damaged one is something to keep as well. */
const holdsCheckpoint = (dir: string): Promise<boolean> =>
  findFolder(dir).then(
    (found) => found !== undefined,
    () => true,
  )

/** Text of a log that could not be written is kept up to this length; what comes after that is lost. */
const MOST_WAITING = 1 << 22

export class RunFolder {
  readonly checkpoints: string
  /** By name of the log: what its file could not take yet. */
  private readonly waiting = new Map<string, { text: string; header: string; lost: number; told: boolean }>()
  private statusKnown = false
  private statusLate = false
  private statusWritten = 0
  private statusWriting: Promise<void> = Promise.resolve()
  private concluded = false

  /** `warn` hears of what could not be written and does not end the run: once, until it can be written again. */
  constructor(
    readonly dir: string,
    private readonly warn: (code: string, message: string, hint?: string) => void = () => undefined,
  ) {
    this.checkpoints = path.join(dir, 'checkpoints')
  }

  get last(): string {
    return path.join(this.checkpoints, 'last')
  }

  get best(): string {
    return path.join(this.checkpoints, 'best')
  }

  file(name: string): string {
    return path.join(this.dir, name)
  }

  /** A run that failed before its first checkpoint is none: there is nothing to keep, and nothing to go on from. */
  async isRun(): Promise<boolean> {
    const marks = await Promise.all(MARKS.map((mark) => exists(this.file(mark))))
    if (!marks.includes(true)) return false
    if ((await this.readStatus())?.state !== 'failed') return true
    for (const dir of [this.last, this.best]) if (await holdsCheckpoint(dir)) return true
    return false
  }

  /** @throws EFF_RUN_EXISTS when there is a run and it is not to be continued */
  async open(resume: boolean): Promise<void> {
    if (!resume && (await this.isRun())) {
      throw new EffnetError('EFF_RUN_EXISTS', `${this.dir}: there is a run already`, {
        hint: '--resume continues it; or give another --out',
        details: { path: this.dir },
      })
    }
    try {
      await makeFolders(this.checkpoints)
    } catch (cause) {
      throw ioError(cause, this.dir)
    }
  }

  async writeConfig(config: unknown, resolved: unknown): Promise<void> {
    const { stringify } = await import('yaml')
    await writeAtomic(this.file('config.yaml'), stringify(config))
    await writeAtomic(this.file('resolved.yaml'), stringify(resolved))
  }

  async writeEnvironment(
    command: readonly string[] | undefined,
    precision: string,
    { threads, device, tuning }: Pick<Session, 'threads' | 'device' | 'tuning'>,
  ): Promise<void> {
    const native = binding()
    await writeAtomic(
      this.file('environment.json'),
      json({
        package: packageVersion(),
        addon: native.version(),
        node: process.versions.node,
        v8: process.versions.v8,
        platform: `${process.platform}-${process.arch}`,
        os: `${os.type()} ${os.release()}`,
        cpu: native.cpuInfo(),
        hostCores: os.cpus().length,
        memoryBytes: os.totalmem(),
        precision,
        threads,
        device,
        // GPU, compute capability, driver and libraries.
        ...(tuning && { gpu: tuning.machine }),
        command: command ?? null,
        cwd: process.cwd(),
        git: await gitCommit(),
        env: Object.fromEntries(Object.entries(process.env).filter(([key]) => ENV.test(key))),
        started: new Date().toISOString(),
      }),
    )
  }

  /** The error that ends the run says that the disk is full: a status that does not fit either is no news. */
  noteFull(): void {
    this.statusLate = true
  }

  /** @throws EFF_IO, EFF_CKPT_NO_SPACE of the first one alone: a run is not lost for its status */
  async writeStatus(status: Omit<RunStatus, 'updated' | 'exitCode'>): Promise<void> {
    if (!this.concluded) await this.replaceStatus({ ...status, exitCode: null })
  }

  private async replaceStatus(status: Omit<RunStatus, 'updated'>): Promise<void> {
    this.statusWritten = performance.now()
    const text = json({ ...status, updated: new Date().toISOString() } satisfies RunStatus)
    const write = () =>
      writeAtomic(this.file('status.json'), text).catch((cause) => overwrite(this.file('status.json'), text, cause))
    this.statusWriting = this.statusWriting.then(write, write)
    try {
      await this.statusWriting
      this.statusKnown = true
      this.statusLate = false
    } catch (cause) {
      if (!this.statusKnown) throw cause
      if (!this.statusLate) this.tell(cause, 'status.json', 'it is tried again')
      this.statusLate = true
    }
  }

  /** The last word, of a process that ends: a run that was on is interrupted then. Nothing is written after it. */
  async conclude(exitCode: number, message?: string): Promise<void> {
    this.concluded = true
    await this.statusWriting.catch(() => undefined)
    const status = await this.readStatus()
    if (!status) return
    const state = status.state === 'running' ? 'interrupted' : status.state
    await this.replaceStatus({ ...status, state, exitCode, message: message ?? status.message })
  }

  /** Milliseconds since the status was last written. */
  get statusAge(): number {
    return performance.now() - this.statusWritten
  }

  async readStatus(): Promise<RunStatus | undefined> {
    const text = await readOptional(this.file('status.json'))
    if (text === undefined) return undefined
    try {
      return JSON.parse(text) as RunStatus
    } catch {
      return undefined
    }
  }

  /** Adds to a log; a new file begins with `header`. What cannot be written waits for the next time. */
  async append(name: string, text: string, header = ''): Promise<void> {
    const before = this.waiting.get(name)
    const all = (before?.text ?? '') + text
    try {
      await appendWhole(this.file(name), all, header)
      if (before?.lost === 0) this.waiting.delete(name)
      else if (before) this.waiting.set(name, { ...before, text: '', told: false })
    } catch (cause) {
      if (!before?.told) this.tell(cause, name, 'its lines are kept until they can be written')
      const fits = all.length <= MOST_WAITING
      const lost = (before?.lost ?? 0) + (fits ? 0 : lines(text))
      this.waiting.set(name, { text: fits ? all : (before?.text ?? ''), header, lost, told: true })
    }
  }

  /** At the end: what still waits is tried once more, then told as lost. */
  async settleLogs(): Promise<void> {
    for (const [name, { header }] of [...this.waiting]) {
      await this.append(name, '', header)
      const left = this.waiting.get(name)
      const missing = left ? left.lost + lines(left.text) : 0
      if (missing > 0)
        this.warn('log-lost', `${this.file(name)}: ${missing} line${missing === 1 ? '' : 's'} could not be written`)
      this.waiting.delete(name)
    }
  }

  private tell(cause: unknown, name: string, then: string): void {
    const { code, message } = ioError(cause, this.file(name))
    const hint = code === 'EFF_CKPT_NO_SPACE' ? 'free some space' : undefined
    this.warn(code, `${message}; the run goes on, ${then}`, hint)
  }

  async start(name: string, text: string): Promise<void> {
    try {
      const handle = await open(this.file(name), 'w')
      try {
        await writeAll(handle, text, logFault())
      } finally {
        await handle.close()
      }
    } catch (cause) {
      throw ioError(cause, this.file(name))
    }
  }

  /** Undefined where there is none that is complete. */
  async firstLine(name: string): Promise<string | undefined> {
    const text = (await readOptional(this.file(name))) ?? ''
    const end = text.indexOf('\n')
    return end < 0 ? undefined : text.slice(0, end)
  }

  /**
   * Drops lines of a resumed run that lie behind the place it continues from; `header` where a crash left none. Those that stay
   * become what `change` makes of them.
   */
  async cut(
    name: string,
    keep: (line: string) => boolean,
    header = '',
    change: (line: string, n: number) => string = (line) => line,
  ): Promise<void> {
    const text = (await readOptional(this.file(name))) ?? ''
    // The last line may be incomplete after a crash; it has no newline then.
    const whole = text.slice(0, text.lastIndexOf('\n') + 1)
    const kept = whole.split('\n').filter((line) => line !== '' && keep(line))
    const start = whole === '' ? header : ''
    await writeAtomic(this.file(name), start + kept.map((line, n) => `${change(line, n)}\n`).join(''))
  }

  /** `continued`: those that earlier processes of the run met stay listed. */
  async writeBadFiles(bad: readonly BadFile[], continued = false): Promise<void> {
    const header = csvLine(['path', 'code', 'message'])
    const lines = bad.map((b) => csvLine([b.path, b.code, b.message]))
    const before = continued ? ((await readOptional(this.file('bad_files.csv'))) ?? '') : ''
    const others = records(before)
      .slice(1)
      .filter((r) => !bad.some((b) => r.startsWith(csvLine([b.path]).trimEnd() + ',')))
    const file = this.file('bad_files.csv')
    if (others.length + lines.length > 0) await writeAtomic(file, header + [...others, ...lines].join(''))
    else await rm(file, { force: true })
  }

  async writeResults(results: unknown): Promise<void> {
    await writeAtomic(this.file('results.json'), json(results))
  }
}

/** Of CSV text; a quoted cell may hold a line's end. */
const records = (text: string): string[] => text.match(/(?:"(?:[^"]|"")*"|[^"\n])*\n/g) ?? []

const lines = (text: string): number => text.split('\n').length - 1

/** Where no new file can be made (a full disk) the old one is written over: it takes no space. Else the error is thrown. */
async function overwrite(file: string, text: string, cause: unknown): Promise<void> {
  const handle = await open(file, 'r+').catch(() => undefined)
  if (!handle) throw cause
  try {
    await writeAll(handle, text, logFault())
    await handle.truncate(Buffer.byteLength(text))
  } catch {
    throw cause
  } finally {
    await handle.close()
  }
}

/** Commit of the folder the program runs in, when it is a git checkout. */
async function gitCommit(): Promise<string | null> {
  try {
    const { stdout } = await promisify(execFile)('git', ['rev-parse', 'HEAD'], { timeout: 2000 })
    return stdout.trim()
  } catch {
    return null
  }
}
