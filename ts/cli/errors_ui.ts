/** Errors as a person reads them (code, what, why, mend) and as a script does (one JSON object). */
import { EffnetError } from '../errors.js'
import { exitCodeOf } from './exit.js'
import { printable } from './paths_ui.js'
import type { Paint } from './ui.js'
import { asTyped, userWords } from './user_words.js'

export interface DescribedError {
  code: string
  message: string
  why?: string
  mend: string | undefined
  exitCode: number
  stack: string | undefined
}

const ERRNO_MEND: Record<string, string> = {
  ENOENT: 'check the path',
  ENOTDIR: 'check the path: a part of it is a file',
  EISDIR: 'name a file, not a folder',
  EACCES: 'give this user access to it (ls -l shows the owner), or name another path',
  EPERM: 'give this user access to it (ls -l shows the owner), or name another path',
  EROFS: 'write to another file system: --out DIR',
  ENOSPC: 'free some space (df -h shows how much there is), or write elsewhere: --out DIR',
  EDQUOT: 'free some of your quota, or write elsewhere: --out DIR',
  EMFILE: 'raise the limit of open files: ulimit -n 4096',
}

/** Where an error brings no mend of its own. */
const MEND: Record<string, string> = {
  EFF_IO: 'check the path and the disk (df -h), then run it again',
  EFF_CKPT_MISSING: 'name a run folder or one of its checkpoints, e.g. runs/first/checkpoints/last',
  EFF_CONFIG_VALUE: 'effnet VERB --help tells what is accepted',
  EFF_INVALID_ARGUMENT: 'effnet VERB --help tells what is accepted',
  EFF_DATA_DECODE: 'replace the file, or convert it to JPEG or PNG',
  EFF_DATA_MISSING: 'check the path',
  EFF_OOM: 'a smaller --batch-size or --image-size',
  EFF_CPU_UNSUPPORTED: 'run it on an x86-64 machine with AVX2',
}

const REPORT = 'this is a bug in effnet: report it with what `effnet doctor` prints and the stack that -v shows'

/** The reason behind an error: a `why` among its details, else its cause where that says more than the message. */
function reason(error: Error): string | undefined {
  const why = error instanceof EffnetError ? error.details['why'] : undefined
  if (typeof why === 'string') return why
  const cause = error.cause
  if (cause instanceof Error && cause.message && !error.message.includes(cause.message)) return cause.message
  return undefined
}

/** `program`: how commands in the mend are to be typed (`npx effnet`); `verb`: of the command that failed. */
export function describeError(thrown: unknown, program = 'effnet', verb?: string): DescribedError {
  const error = thrown instanceof Error ? thrown : new Error(String(thrown))
  const code = 'code' in error && typeof error.code === 'string' ? error.code : 'EFF_INTERNAL'
  const why = reason(error)
  const stack = [error.stack, error.cause instanceof Error ? `caused by ${error.cause.stack}` : undefined]
  const bug = code === 'EFF_INTERNAL' || (!(error instanceof EffnetError) && ERRNO_MEND[code] === undefined)
  // An I/O error says by its errno whether to mend permissions or to try again.
  const errno = error instanceof EffnetError && code === 'EFF_IO' ? String(error.details['errno']) : undefined
  const known = errno !== undefined && ['EACCES', 'EPERM', 'EROFS'].includes(errno) ? errno : code
  const hint = error instanceof EffnetError ? error.hint : undefined
  const general = (bug ? REPORT : MEND[code])?.replace(' VERB', verb === undefined ? '' : ` ${verb}`)
  const mend = hint || (ERRNO_MEND[errno ?? code] ?? general)
  return {
    code,
    message: userWords(error.message),
    ...(why === undefined ? {} : { why: userWords(why) }),
    mend: mend === undefined ? undefined : asTyped(userWords(mend), program),
    exitCode: exitCodeOf(known),
    stack: stack.filter(Boolean).join('\n'),
  }
}

const indent = (text: string): string =>
  text
    .trimEnd()
    .split('\n')
    .map((line) => `  ${line.trimEnd()}`)
    .join('\n')

/** Code and what on the first line, then the rest of the message, why and the mend, each indented; the stack only when asked. */
export function formatError(error: DescribedError, paint: Paint, verbose: boolean): string {
  const [what = '', ...rest] = error.message.trimEnd().split('\n').map(printable)
  const lines = [`${paint.red(paint.bold(error.code))}  ${what}`]
  if (rest.length > 0) lines.push(...rest.map((line) => (line.startsWith('  ') ? line : `  ${line}`)))
  if (error.why) lines.push(indent(error.why))
  if (error.mend) lines.push(indent(`${paint.bold('Mend:')} ${error.mend}`))
  if (verbose && error.stack) lines.push(indent(paint.dim(error.stack)))
  return `${lines.join('\n')}\n`
}

/** The `error` object of `--json`. */
export const errorObject = (error: DescribedError): Record<string, unknown> => ({
  code: error.code,
  message: error.message,
  ...(error.why === undefined ? {} : { why: error.why }),
  ...(error.mend === undefined ? {} : { mend: error.mend }),
  exit_code: error.exitCode,
})
