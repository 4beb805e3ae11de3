import path from 'node:path'

/** A path as the user would type it: relative where it lies below the working folder. */
export function shown(file: string): string {
  const relative = path.relative(process.cwd(), file)
  return relative !== '' && !relative.startsWith('..') ? relative : file
}

const quoted = (word: string): string => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)

/** Words as a command line that a shell reads back. */
export const commandLine = (words: readonly string[]): string => words.map(quoted).join(' ')

const CONTROL = /[\p{Cc}\p{Zl}\p{Zp}]/gu

/** A name for a terminal: what would move the cursor, break the line or colour it, as an escape. */
export const printable = (name: string): string =>
  name.replace(CONTROL, (c) =>
    c === '\n' ? '\\n' : c === '\t' ? '\\t' : `\\u${c.codePointAt(0)!.toString(16).padStart(4, '0')}`,
  )
