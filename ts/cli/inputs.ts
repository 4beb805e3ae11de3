/** The images that the words of `effnet predict` name: files, folders and globs, in the order given. */
import { type Dirent, existsSync, realpathSync, statSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import path from 'node:path'
import { isImagePath } from '../data/image_folder.js'
import { holds } from '../data/links.js'
import { compareCodePoints } from '../data/order.js'
import { EffnetError } from '../errors.js'

const MAGIC = /[*?[\]{}]/

/** A glob of `/`-separated segments as expressions; `**` stands for any number of folders. */
function segmentPattern(segment: string): RegExp {
  let source = ''
  let depth = 0
  for (let i = 0; i < segment.length; i++) {
    const c = segment[i]!
    if (c === '*') source += '[^/]*'
    else if (c === '?') source += '[^/]'
    else if (c === '[' && segment.indexOf(']', i + 2) > 0) {
      const end = segment.indexOf(']', i + 2)
      const body = segment.slice(i + 1, end).replace(/\\/g, '\\\\')
      source += `[${body.startsWith('!') ? `^${body.slice(1)}` : body}]`
      i = end
    } else if (c === '{' && segment.indexOf('}', i) > 0) {
      depth++
      source += '(?:'
    } else if (c === '}' && depth > 0) {
      depth--
      source += ')'
    } else if (c === ',' && depth > 0) source += '|'
    else source += c.replace(/[.+^$(){}|\\[\]]/g, '\\$&')
  }
  try {
    // Names that begin with a dot are matched by patterns that do.
    return new RegExp(`^${segment.startsWith('.') ? '' : '(?!\\.)'}${source}$`, 'u')
  } catch (cause) {
    throw new EffnetError('EFF_CONFIG_VALUE', `${segment}: not a glob that can be read`, {
      hint: 'close every [ and {, with ranges from the lower to the higher: [0-9], {png,jpg}',
      cause,
    })
  }
}

const entriesOf = async (dir: string): Promise<Dirent[]> => {
  try {
    const entries = await readdir(dir || '.', { withFileTypes: true })
    return entries.sort((a, b) => compareCodePoints(a.name, b.name))
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'EACCES'].includes((error as NodeJS.ErrnoException).code ?? '')) return []
    throw error
  }
}

const isFolder = (file: string): boolean => {
  try {
    return statSync(file, { throwIfNoEntry: false })?.isDirectory() ?? false
  } catch {
    return false // a link that leads to itself
  }
}

/** Files that match, sorted by code point within each folder; paths begin as the pattern does. */
async function glob(pattern: string): Promise<string[]> {
  const root = pattern.startsWith('/') ? '/' : ''
  const segments = pattern.split('/').filter((s) => s !== '')
  const found: string[] = []
  const join = (base: string, name: string): string => (base === '' || base.endsWith('/') ? base + name : `${base}/${name}`)
  const visit = async (base: string, at: number): Promise<void> => {
    const segment = segments[at]
    if (segment === undefined) return
    const last = at === segments.length - 1
    if (segment === '**') {
      await visit(base, at + 1)
      for (const entry of await entriesOf(base)) {
        if (entry.name.startsWith('.')) continue
        const full = join(base, entry.name)
        if (entry.isDirectory()) await visit(full, at)
        else if (last) found.push(full)
      }
      return
    }
    if (!MAGIC.test(segment)) {
      const full = join(base, segment)
      if (!last) await visit(full, at + 1)
      else if (existsSync(full)) found.push(full)
      return
    }
    const matcher = segmentPattern(segment)
    for (const entry of await entriesOf(base)) {
      if (!matcher.test(entry.name)) continue
      const full = join(base, entry.name)
      if (!last) await visit(full, at + 1)
      else found.push(full)
    }
  }
  await visit(root, 0)
  return [...new Set(found)]
}

/** Image files below a folder, hidden names left out, sorted by path. */
async function imagesBelow(dir: string, entered = new Set<string>(), root = realpathSync(dir)): Promise<string[]> {
  const found: string[] = []
  // Links may lead back or up: every folder is entered once, none above the first.
  const real = realpathSync(dir)
  if (entered.has(real) || holds(real, root)) return found
  entered.add(real)
  for (const entry of await entriesOf(dir)) {
    if (entry.name.startsWith('.')) continue
    const full = path.join(dir, entry.name)
    if (isFolder(full)) found.push(...(await imagesBelow(full, entered, root)))
    else if (isImagePath(entry.name)) found.push(full)
  }
  return found
}

const empty = (word: string, what: string): EffnetError =>
  new EffnetError('EFF_DATA_EMPTY', `${word}: ${what}`, {
    hint: "name image files, a folder of them, or a quoted glob: effnet predict 'photos/**/*.jpg'",
    details: { path: word },
  })

/**
 * Expands the words. A file is kept as given, there or not: the answer for it says whether it can be read. Throws EFF_DATA_EMPTY
 * for a folder or a glob without images and EFF_DATA_MISSING for what is neither there nor named like an image.
 */
export async function expandInputs(words: readonly string[]): Promise<string[]> {
  const files: string[] = []
  for (const word of words) {
    if (isFolder(word)) {
      const below = await imagesBelow(word)
      if (below.length === 0) throw empty(word, 'no images in this folder')
      files.push(...below)
    } else if (existsSync(word)) {
      files.push(word)
    } else if (MAGIC.test(word)) {
      const matches: string[] = []
      for (const match of await glob(word)) {
        if (isFolder(match)) matches.push(...(await imagesBelow(match)))
        else if (isImagePath(match)) matches.push(match)
      }
      if (matches.length === 0) throw empty(word, 'the glob matches no image')
      files.push(...matches)
    } else if (isImagePath(word)) {
      files.push(word)
    } else {
      throw new EffnetError('EFF_DATA_MISSING', `${word}: no such file or folder`, {
        hint: `check the path (it is relative to ${process.cwd()})`,
        details: { path: word },
      })
    }
  }
  return files
}
