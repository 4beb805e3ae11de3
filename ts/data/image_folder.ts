/** A folder of images with a folder a class, with or without `train/` and `val/`. Reads names only; never writes. */
import { readdir, realpath, stat } from 'node:fs/promises'
import path from 'node:path'
import { EffnetError } from '../errors.js'
import { checkKeys } from '../option_keys.js'
import { FileDataset } from './dataset.js'
import { holds } from './links.js'
import { compareCodePoints } from './order.js'
import type { ImageDataset, ImageFolder, ImageFolderOptions, ImageSplitOptions } from './types.js'

const EXTENSIONS = ['.jpg', '.jpeg', '.png', '.webp', '.gif', '.tif', '.tiff', '.avif']
/** Listed, so that a file of them is an error of its own and not silently left out. */
const UNREADABLE = ['.bmp']
const IMAGES = new Set([...EXTENSIONS, ...UNREADABLE])

export const isImagePath = (file: string): boolean => IMAGES.has(path.extname(file).toLowerCase())

const VAL_NAMES = ['val', 'validation']

/**
 * Reads a folder with `train/` and `val/` (or `validation/`), or a folder of classes.
 * Classes are sorted by code point, files by path within their class, hidden names are skipped.
 * @throws EFF_DATA_MISSING no such folder; EFF_DATA_EMPTY no class folders or no images in one; EFF_DATA_LABEL the classes of train and val differ
 */
export async function imageFolder(dir: string, options: ImageSplitOptions): Promise<ImageDataset>
export async function imageFolder(dir: string, options?: ImageFolderOptions): Promise<ImageFolder>
export async function imageFolder(
  dir: string,
  options: ImageFolderOptions & { split?: 'train' | 'val' } = {},
): Promise<ImageFolder | ImageDataset> {
  checkKeys('imageFolder', options, { valSplit: true, seed: true, split: true } satisfies Record<keyof ImageSplitOptions, true>)
  const root = path.resolve(dir)
  if (!(await isFolder(root))) {
    throw new EffnetError('EFF_DATA_MISSING', `${root}: no such folder`, {
      hint: 'give a folder that holds train/ and val/, each with a folder a class, or the folder of classes itself',
      details: { path: root },
    })
  }
  const folders = await subfolders(root)
  const trainName = folders.includes('train') ? 'train' : undefined
  const valName = VAL_NAMES.find((name) => folders.includes(name))
  if (options.split) return oneSplit(root, options, trainName, valName)

  if (trainName === undefined && valName !== undefined) {
    throw new EffnetError('EFF_DATA_MISSING', `${root}: there is ${valName}/ but no train/`, {
      hint: `add ${path.join(root, 'train')} with a folder a class`,
      details: { path: root },
    })
  }
  const train = await scanClasses(trainName === undefined ? root : path.join(root, trainName))
  if (trainName !== undefined && valName !== undefined) {
    const val = await scanClasses(path.join(root, valName))
    sameClasses(train, val)
    return { root, classes: train.classes, train, val }
  }
  if (options.valSplit === undefined) return { root, classes: train.classes, train }
  const [rest, held] = train.split(options.valSplit, options.seed)
  return { root, classes: train.classes, train: rest, val: held }
}

async function oneSplit(
  root: string,
  options: ImageFolderOptions & { split?: 'train' | 'val' },
  trainName: string | undefined,
  valName: string | undefined,
): Promise<ImageDataset> {
  const name = options.split === 'train' ? trainName : valName
  if (name !== undefined) return scanClasses(path.join(root, name))
  if (trainName === undefined && valName === undefined) {
    const all = await scanClasses(root)
    if (options.valSplit === undefined) return all
    return all.split(options.valSplit, options.seed)[options.split === 'train' ? 0 : 1]
  }
  if (options.split === 'val' && options.valSplit !== undefined && trainName !== undefined) {
    return (await scanClasses(path.join(root, trainName))).split(options.valSplit, options.seed)[1]
  }
  throw new EffnetError('EFF_DATA_MISSING', `${root}: there is no ${options.split}/`, {
    hint:
      options.split === 'val'
        ? `add ${path.join(root, 'val')}, or hold images out with valSplit (--val-split 0.1)`
        : `add ${path.join(root, 'train')} with a folder a class`,
    details: { path: root },
  })
}

const isFolder = async (dir: string): Promise<boolean> => {
  try {
    return (await stat(dir)).isDirectory()
  } catch {
    return false
  }
}

/** A pipe, socket or device: reading it may never end. A dangling link is none, it is reported as unreadable. */
async function isSpecial(file: string): Promise<boolean> {
  const found = await stat(file).catch(() => undefined)
  return found !== undefined && !found.isFile()
}

async function subfolders(dir: string): Promise<string[]> {
  const entries = await readdir(dir, { withFileTypes: true })
  const names: string[] = []
  for (const entry of entries) {
    if (entry.name.startsWith('.')) continue
    if (entry.isDirectory() || (entry.isSymbolicLink() && (await isFolder(path.join(dir, entry.name))))) names.push(entry.name)
  }
  return names.sort(compareCodePoints)
}

/** Image files below `dir`: folders in order of their path, files in order of their name. */
async function imagesBelow(dir: string): Promise<string[]> {
  const found: { dir: string; names: string[] }[] = []
  // Links may lead back or up: every folder is entered once, none above the first.
  const entered = new Set<string>()
  const root = await realpath(dir)
  const visit = async (folder: string): Promise<void> => {
    const real = await realpath(folder)
    if (entered.has(real) || holds(real, root)) return
    entered.add(real)
    const entries = await readdir(folder, { withFileTypes: true })
    const names: string[] = []
    for (const entry of entries) {
      if (entry.name.startsWith('.')) continue
      const full = path.join(folder, entry.name)
      const link = entry.isSymbolicLink()
      if (entry.isDirectory() || (link && (await isFolder(full)))) await visit(full)
      else if ((entry.isFile() || (link && !(await isSpecial(full)))) && isImagePath(entry.name)) names.push(entry.name)
    }
    found.push({ dir: folder, names: names.sort(compareCodePoints) })
  }
  await visit(dir)
  found.sort((a, b) => compareCodePoints(a.dir, b.dir))
  return found.flatMap((f) => f.names.map((name) => path.join(f.dir, name)))
}

async function scanClasses(root: string): Promise<FileDataset> {
  const classes = await subfolders(root)
  if (classes.length === 0) {
    throw new EffnetError('EFF_DATA_EMPTY', `${root}: no class folders in it`, {
      hint: 'put the images of each class into a folder named after the class',
      details: { path: root },
    })
  }
  const files: string[] = []
  const labels: number[] = []
  const empty: string[] = []
  for (const [k, name] of classes.entries()) {
    const found = await imagesBelow(path.join(root, name))
    if (found.length === 0) empty.push(name)
    for (const file of found) {
      files.push(file)
      labels.push(k)
    }
  }
  if (empty.length > 0) {
    const some = empty.slice(0, 5).join(', ') + (empty.length > 5 ? ` and ${empty.length - 5} more` : '')
    throw new EffnetError('EFF_DATA_EMPTY', `${root}: no images in ${empty.length} of ${classes.length} class folders: ${some}`, {
      hint: `remove the empty folders or fill them; images end in ${EXTENSIONS.join(' ')}`,
      details: { path: root, empty },
    })
  }
  return new FileDataset(root, classes, files, Int32Array.from(labels))
}

function sameClasses(train: ImageDataset, val: ImageDataset): void {
  const [inTrain, inVal] = [new Set(train.classes), new Set(val.classes)]
  const missing = train.classes.filter((name) => !inVal.has(name))
  const extra = val.classes.filter((name) => !inTrain.has(name))
  if (missing.length === 0 && extra.length === 0) return
  const list = (names: string[]) => names.slice(0, 5).join(', ') + (names.length > 5 ? ` and ${names.length - 5} more` : '')
  const parts = [
    ...(missing.length > 0 ? [`only in ${train.root}: ${list(missing)}`] : []),
    ...(extra.length > 0 ? [`only in ${val.root}: ${list(extra)}`] : []),
  ]
  throw new EffnetError('EFF_DATA_LABEL', `training and validation have different classes; ${parts.join('; ')}`, {
    hint: 'both need the same class folders',
    details: { onlyTrain: missing, onlyVal: extra },
  })
}
