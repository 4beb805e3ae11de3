import path from 'node:path'

/** Whether `real` holds the folder `root` (both without links): a link there would bring in what lies beside it. */
export function holds(real: string, root: string): boolean {
  const down = path.relative(real, root)
  return down !== '' && down !== '..' && !down.startsWith(`..${path.sep}`)
}
