/** What a person sees: colours, tables, the live line, warnings. Human text goes to stdout, or to stderr under `--json`. */
import { byteText } from '../byte_text.js'
import type { Io, Sink } from './io.js'

const REDRAW_MS = 100
const PLAIN_MS = 30_000
const PLAIN_WIDTH = 200

export interface Paint {
  bold(text: string): string
  dim(text: string): string
  red(text: string): string
  green(text: string): string
  yellow(text: string): string
  cyan(text: string): string
}

const sgr =
  (on: boolean, open: number, close: number) =>
  (text: string): string =>
    on ? `\u001b[${open}m${text}\u001b[${close}m` : text

export const makePaint = (on: boolean): Paint => ({
  bold: sgr(on, 1, 22),
  dim: sgr(on, 2, 22),
  red: sgr(on, 31, 39),
  green: sgr(on, 32, 39),
  yellow: sgr(on, 33, 39),
  cyan: sgr(on, 36, 39),
})

/** NO_COLOR wins, then FORCE_COLOR (0 means off); otherwise a terminal that is not TERM=dumb. */
export function wantsColor(sink: Sink, env: Io['env']): boolean {
  if (env['NO_COLOR']) return false
  const forced = env['FORCE_COLOR']
  if (forced !== undefined && forced !== '') return forced !== '0' && forced !== 'false'
  return sink.isTTY && env['TERM'] !== 'dumb'
}

/** A line is redrawn in place only on a terminal that is not the log of a CI job. */
export const wantsLive = (sink: Sink, env: Io['env']): boolean =>
  sink.isTTY && env['TERM'] !== 'dumb' && (env['CI'] === undefined || env['CI'] === '' || env['CI'] === 'false')

/** A piece of the live line; the highest `rank` goes first where the terminal is narrow. 90 and above: never in plain lines. */
export interface Field {
  text: string
  rank: number
}

/** Joins fields by two spaces, leaving out the least important until the line fits into `width - 1` characters. */
export function fitFields(fields: readonly Field[], width: number): string {
  let kept = fields.filter((f) => f.text !== '')
  const joined = (): string => kept.map((f) => f.text).join('  ')
  while (kept.length > 1 && joined().length > width - 1) {
    const worst = Math.max(...kept.map((f) => f.rank))
    kept = kept.filter((f) => f.rank !== worst)
  }
  return joined().slice(0, Math.max(1, width - 1))
}

export interface Column {
  title: string
  align?: 'left' | 'right'
}

/** Rows under titles, columns as wide as their widest cell, two spaces between. */
export function formatTable(columns: readonly Column[], rows: readonly (readonly string[])[]): string[] {
  const widths = columns.map((c, i) => Math.max(c.title.length, ...rows.map((r) => (r[i] ?? '').length)))
  const line = (cells: readonly string[]): string =>
    columns
      .map((c, i) => (c.align === 'right' ? (cells[i] ?? '').padStart(widths[i]!) : (cells[i] ?? '').padEnd(widths[i]!)))
      .join('  ')
      .trimEnd()
  return [line(columns.map((c) => c.title)), ...rows.map(line)]
}

/** `share` of `cells` drawn in heavy line, the rest in light. */
export function bar(share: number, cells: number): string {
  const full = Math.max(0, Math.min(cells, Math.round(share * cells)))
  return '━'.repeat(full) + '─'.repeat(cells - full)
}

/** 0:05, 12:34, 1:02:03. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds) || seconds < 0) return '-'
  const total = Math.round(seconds)
  const [h, m, s] = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60]
  const two = (n: number): string => String(n).padStart(2, '0')
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`
}

/** Thousands in groups: 1 281 167. */
export const grouped = (n: number): string => {
  const digits = String(Math.abs(Math.round(n)))
  const text = digits.replace(/\B(?=(\d{3})+$)/g, ' ')
  return n < 0 ? `-${text}` : text
}

/** Four significant digits; scientific outside 1e-4..1e6. */
export function compact(n: number): string {
  if (!Number.isFinite(n)) return String(n)
  if (n === 0) return '0'
  const size = Math.abs(n)
  if (size < 1e-4 || size >= 1e6)
    return n
      .toExponential(2)
      .replace(/\.?0+e/, 'e')
      .replace('e+', 'e')
  return String(Number(n.toPrecision(4)))
}

/** As `byteText`, of MiB from ten on whole ones. */
export const mebibytes = (bytes: number): string =>
  bytes >= 10 * 1024 ** 2 && bytes < 1024 ** 3 ? `${(bytes / 1024 ** 2).toFixed(0)} MiB` : byteText(bytes)

export interface UiOptions {
  json: boolean
  quiet: boolean
  /** 0, 1 (-v) or 2 (-vv). */
  verbosity: number
  /** Milliseconds; replaced in tests. */
  now?: () => number
}

export class Ui {
  readonly paint: Paint
  readonly live: boolean
  readonly json: boolean
  readonly quiet: boolean
  readonly verbosity: number
  readonly #human: Sink
  readonly #io: Io
  readonly #now: () => number
  readonly #warned = new Map<string, number>()
  #liveShown = false
  #lastDraw = Number.NEGATIVE_INFINITY
  #lastPlain: number

  constructor(io: Io, options: UiOptions) {
    this.#io = io
    this.#human = options.json ? io.stderr : io.stdout
    this.#now = options.now ?? (() => performance.now())
    this.#lastPlain = this.#now()
    this.json = options.json
    this.quiet = options.quiet
    this.verbosity = options.verbosity
    this.paint = makePaint(wantsColor(this.#human, io.env))
    this.live = wantsLive(this.#human, io.env)
  }

  get width(): number {
    return Math.max(20, this.#human.columns)
  }

  /** The reader of stdout has gone. */
  get outputClosed(): boolean {
    return this.#io.stdout.closed
  }

  /** One or more whole lines. */
  line(text = ''): void {
    if (this.quiet) return
    this.clearLive()
    this.#human.write(`${text}\n`)
  }

  /** Lines that are the answer itself: not silenced by `--quiet`, on stdout. Not for `--json`. */
  answer(text: string): void {
    this.clearLive()
    this.#io.stdout.write(`${text}\n`)
  }

  /** One line of JSON on stdout. Only under `--json`. */
  object(value: unknown): void {
    if (!this.json) return
    this.clearLive()
    this.#io.stdout.write(`${JSON.stringify(value)}\n`)
  }

  /** Text on stderr whatever the options: errors. */
  error(text: string): void {
    this.clearLive()
    this.#io.stderr.write(text)
  }

  /** Each `key` is said once; repeats are counted and told by `warningsLeft`. */
  warn(key: string, text: string, mend?: string): void {
    const count = this.#warned.get(key) ?? 0
    this.#warned.set(key, count + 1)
    if (count > 0) return
    this.clearLive()
    const lines = [`${this.paint.yellow('warning')}  ${text}`, ...(mend ? [`  Mend: ${mend}`] : [])]
    this.#io.stderr.write(`${lines.join('\n')}\n`)
  }

  /** Tells how often each warning came again, once. */
  warningsLeft(): void {
    for (const [key, count] of this.#warned) {
      if (count > 1) this.#io.stderr.write(`${this.paint.yellow('warning')}  ${key}: and ${count - 1} more\n`)
      this.#warned.set(key, 0)
    }
  }

  table(columns: readonly Column[], rows: readonly (readonly string[])[]): void {
    const [head = '', ...body] = formatTable(columns, rows)
    this.line(this.paint.dim(head))
    for (const row of body) this.line(row)
  }

  /**
   * Progress: on a terminal the live line, redrawn at most ten times a second; elsewhere a plain line every 30 seconds, or at
   * once when `due` (every N steps). `fields` is called only when something is drawn.
   */
  progress(fields: () => readonly Field[], due = false): void {
    if (this.quiet) return
    const now = this.#now()
    if (this.live) {
      if (now - this.#lastDraw < REDRAW_MS) return
      this.#lastDraw = now
      this.#liveShown = true
      this.#human.write(`\r\u001b[2K${fitFields(fields(), this.width)}`)
    } else if (due || now - this.#lastPlain >= PLAIN_MS) {
      this.#lastPlain = now
      this.#human.write(
        `${fitFields(
          fields().filter((f) => f.rank < 90),
          PLAIN_WIDTH,
        )}\n`,
      )
    }
  }

  /** Removes the live line, so that whole lines never mix with it. */
  clearLive(): void {
    if (!this.#liveShown) return
    this.#liveShown = false
    this.#human.write('\r\u001b[2K')
  }
}
