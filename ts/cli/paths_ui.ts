import path from 'node:path'

/** A path as the user would type it: relative where it lies below the working folder. */
export function shown(file: string): string {
  const relative = path.relative(process.cwd(), file)
  return relative !== '' && !relative.startsWith('..') ? relative : file
}

const quoted = (word: string): string => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)

/** Words as a command line that a shell reads back. */
export const commandLine = (words: readonly string[]): string => words.map(quoted).join(' ')
