/** Small files written so that a reader sees the old or the new one, never half of it. */
import { type FileHandle, mkdir, open, readFile, rename, rm, stat } from 'node:fs/promises'
import path from 'node:path'
import { EffnetError } from '../errors.js'
import { logFault } from './fault.js'

/** Writes and fsyncs a new file. */
async function writeSynced(file: string, data: string | Uint8Array, fault: WriteFault): Promise<void> {
  const handle = await open(file, 'w')
  try {
    await writeAll(handle, data, fault)
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** What a test lets a write fail with, see `logFault`. */
type WriteFault = ReturnType<typeof logFault>

/** At the handle's position; of one opened for appending at the end. */
export async function writeAll(handle: FileHandle, data: string | Uint8Array, fault: WriteFault): Promise<void> {
  if (!fault) return handle.writeFile(data)
  if (fault.half) await handle.writeFile(data.slice(0, data.length >> 1))
  throw fault.cause
}

/**
 * Adds to a file, which begins with `header`. It is opened each time, so that one that was moved away is followed by a new one.
 * Where not all could be written it is as before.
 */
export async function appendWhole(file: string, text: string, header = ''): Promise<void> {
  const fault = logFault()
  try {
    const handle = await open(file, 'a')
    try {
      const { size } = await handle.stat()
      try {
        await writeAll(handle, size === 0 ? header + text : text, fault)
      } catch (cause) {
        await handle.truncate(size).catch(() => undefined)
        throw cause
      }
    } finally {
      // The text has been written, or a worse error is on its way.
      await handle.close().catch(() => undefined)
    }
  } catch (cause) {
    throw ioError(cause, file)
  }
}

/**
 * Makes a folder and those above it. Not `mkdir` with `recursive`: where a file system answers ENOENT for a folder whose parent
 * exists (/proc does), Node 20 tries for ever.
 */
export async function makeFolders(dir: string): Promise<void> {
  const missing: string[] = []
  for (let at = path.resolve(dir); ; at = path.dirname(at)) {
    const found = await stat(at).catch(() => undefined)
    if (found?.isDirectory() || path.dirname(at) === at) break
    missing.push(at)
  }
  for (const each of missing.reverse()) {
    await mkdir(each).catch((cause: NodeJS.ErrnoException) => {
      // Made by somebody else meanwhile; a file of that name makes the next step fail.
      if (cause.code !== 'EEXIST') throw cause
    })
  }
}

let temporaries = 0

/** Replaces a file: temporary name, fsync, rename. */
export async function writeAtomic(file: string, data: string | Uint8Array): Promise<void> {
  const temporary = path.join(path.dirname(file), `.${path.basename(file)}.${process.pid}.${temporaries++}`)
  try {
    await writeSynced(temporary, data, logFault())
    await rename(temporary, file)
  } catch (cause) {
    await rm(temporary, { force: true })
    throw ioError(cause, file)
  }
}

export const exists = (file: string): Promise<boolean> =>
  stat(file).then(
    () => true,
    () => false,
  )

export const json = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`

/** The text, or undefined where there is no such file. */
export async function readOptional(file: string): Promise<string | undefined> {
  try {
    return await readFile(file, 'utf8')
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined
    throw ioError(cause, file)
  }
}

export function ioError(cause: unknown, file: string): EffnetError {
  if (cause instanceof EffnetError) return cause
  const { code, message } = cause as NodeJS.ErrnoException
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return new EffnetError('EFF_CKPT_NO_SPACE', `${file}: no space left on the disk`, {
      hint: 'free some space, then --resume',
      cause,
    })
  }
  return new EffnetError('EFF_IO', `${file}: ${message}`, { cause, details: { errno: code, path: file } })
}

/** One cell of a CSV line (RFC 4180). */
const csvCell = (value: string | number | undefined): string => {
  if (value === undefined) return ''
  const text = String(value)
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
}

export const csvLine = (cells: readonly (string | number | undefined)[]): string => `${cells.map(csvCell).join(',')}\n`
