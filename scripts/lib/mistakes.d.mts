export interface MistakeRow {
  name: string
  argv: string[]
  exit: number
  code: string
  says: RegExp
  mend: RegExp
  cwd?: string | undefined
}
type At = (...names: string[]) => string
type Tmpfs = (name: string, kib: number, readOnly: boolean) => string | undefined

export function prepareMistakes(
  work: string,
  photos: readonly string[],
  train: (words: string[]) => Promise<unknown>,
): Promise<void>
export function mistakes(at: At): MistakeRow[]
export function diskMistakes(at: At, tmpfs: Tmpfs): MistakeRow[]
export function permissionMistakes(at: At): MistakeRow[]
export function folderHash(dir: string, skip?: readonly string[]): string
export function mounts(work: string): { tmpfs: Tmpfs; release(): void }
export function wrongWith(row: MistakeRow, code: number | null, stderr: string): string | undefined
