/** Small image folders made of the fixtures, and the temporary folder they lie in. */
import { cpSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const fixtures = path.resolve(fileURLToPath(import.meta.url), '../../../fixtures/io')
export const PHOTOS = [
  '420.jpg',
  '422.jpg',
  '444.jpg',
  'gray.jpg',
  'progressive.jpg',
  'restarts.jpg',
  'orientation1.jpg',
  'orientation3.jpg',
]

export const photo = (name = '420.jpg'): string => path.join(fixtures, name)

export interface Workplace {
  root: string
  at(...names: string[]): string
  /** A folder a class with so many images each. */
  classes(dir: string, names: readonly string[], images?: number): string
  /** `train/` and `val/`. */
  dataset(dir: string, names?: readonly string[]): string
  remove(): void
}

export function workplace(): Workplace {
  const root = mkdtempSync(path.join(os.tmpdir(), 'effnet-cli-'))
  const at = (...names: string[]): string => path.join(root, ...names)
  const classes = (dir: string, names: readonly string[], images = 4): string => {
    for (const [k, name] of names.entries()) {
      mkdirSync(at(dir, name), { recursive: true })
      for (let i = 0; i < images; i++) cpSync(photo(PHOTOS[(k + i * names.length) % PHOTOS.length]), at(dir, name, `${i}.jpg`))
    }
    return at(dir)
  }
  return {
    root,
    at,
    classes,
    dataset(dir, names = ['cat', 'dog']) {
      classes(path.join(dir, 'train'), names)
      classes(path.join(dir, 'val'), names, 2)
      return at(dir)
    },
    remove: () => rmSync(root, { recursive: true, force: true }),
  }
}
