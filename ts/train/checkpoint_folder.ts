/**
 * Folders that exist whole or not at all. A checkpoint is written under a temporary name (tensors fsynced and hashed by the
 * engine, JSON files, manifest last), then renamed, then its parent is fsynced. A folder without a valid manifest does not
 * exist. While `last` is replaced the old one is kept as `last.prev`, so that at every instant one of the two is whole.
 */
import { createHash } from 'node:crypto'
import { copyFile, link, mkdir, readdir, rename, rm, stat, statfs } from 'node:fs/promises'
import path from 'node:path'
import type { WrittenFile } from '../binding.js'
import { EffnetError } from '../errors.js'
import { faultPoint } from './fault.js'
import { ioError, json, makeFolders, readOptional, writeSynced } from './files.js'

export const MANIFEST = 'manifest.json'
export const MANIFEST_FORMAT = 'effnet-checkpoint'
export const CHECKPOINT_VERSION = 1
const TEMPORARY = '.writing-'
const PREVIOUS = '.prev'

export interface Manifest {
  format: typeof MANIFEST_FORMAT
  version: number
  step: number
  files: Record<string, WrittenFile>
}

/** What of the addon a checkpoint needs. */
export interface FolderIo {
  fsync(path: string): Promise<void>
  hashFile(path: string): Promise<WrittenFile>
}

export interface FolderContent {
  step: number
  /** Bytes that `writeTensors` will write, for the check of free space. */
  bytes: number
  /** Writes, fsyncs and hashes the tensor files of the folder; copies the tensors before it returns its promise. */
  writeTensors: (dir: string) => Promise<Record<string, WrittenFile>>
  json: Readonly<Record<string, unknown>>
}

/**
 * Starts to write `content` as folder `target`; what was there stays until the new one is complete. On return the tensors
 * have been copied, so training may go on; `done` resolves to the bytes written.
 */
export async function startFolder(io: FolderIo, target: string, content: FolderContent): Promise<{ done: Promise<number> }> {
  const parent = path.dirname(target)
  const temporary = path.join(parent, `${TEMPORARY}${path.basename(target)}`)
  await refuseForeign(target)
  try {
    await makeFolders(parent)
    await rm(temporary, { recursive: true, force: true })
    await checkSpace(parent, content.bytes)
    await mkdir(temporary)
  } catch (cause) {
    throw ioError(cause, target)
  }
  const done = finishFolder(io, temporary, target, content)
  // Whoever awaits `done` sees the error; until then it is not unhandled.
  done.catch(() => undefined)
  return { done }
}

/** What is there is replaced: so it must be ours, complete or broken, or empty. */
async function refuseForeign(target: string): Promise<void> {
  if (!(await exists(target)) || (await exists(path.join(target, MANIFEST)))) return
  const entries = await readdir(target).catch(() => undefined)
  if (entries?.length === 0) return
  throw new EffnetError('EFF_RUN_EXISTS', `${target} exists and holds no model of ours`, {
    hint: 'another folder; what is there would be lost',
    details: { path: target },
  })
}

async function finishFolder(io: FolderIo, temporary: string, target: string, content: FolderContent): Promise<number> {
  try {
    const files = { ...(await content.writeTensors(temporary)) }
    faultPoint('checkpoint:tensors')
    for (const [name, value] of Object.entries(content.json)) files[name] = await writeJson(path.join(temporary, name), value)
    faultPoint('checkpoint:json')
    const manifest: Manifest = { format: MANIFEST_FORMAT, version: CHECKPOINT_VERSION, step: content.step, files: sorted(files) }
    await writeSynced(path.join(temporary, MANIFEST), json(manifest))
    await io.fsync(temporary)
    faultPoint('checkpoint:manifest')
    await promote(io, temporary, target)
    return Object.values(files).reduce((sum, f) => sum + f.bytes, 0)
  } catch (cause) {
    await rm(temporary, { recursive: true, force: true })
    throw ioError(cause, target)
  }
}

/** Makes `target` a second folder of the same files (hard links, or copies where the file system has none). */
export async function duplicateFolder(io: FolderIo, source: string, target: string): Promise<void> {
  const temporary = path.join(path.dirname(target), `${TEMPORARY}${path.basename(target)}`)
  try {
    const manifest = await readManifest(source)
    if (!manifest) throw new EffnetError('EFF_CKPT_MISSING', `${source}: no complete checkpoint`)
    await rm(temporary, { recursive: true, force: true })
    await mkdir(temporary)
    for (const name of [...Object.keys(manifest.files), MANIFEST]) {
      const from = path.join(source, name)
      const to = path.join(temporary, name)
      try {
        await link(from, to)
      } catch {
        await copyFile(from, to)
        await io.fsync(to)
      }
    }
    await io.fsync(temporary)
    await promote(io, temporary, target)
  } catch (cause) {
    await rm(temporary, { recursive: true, force: true })
    throw ioError(cause, target)
  }
}

async function promote(io: FolderIo, temporary: string, target: string): Promise<void> {
  const parent = path.dirname(target)
  const previous = `${target}${PREVIOUS}`
  if (await exists(target)) {
    await rm(previous, { recursive: true, force: true })
    await rename(target, previous)
  }
  faultPoint('checkpoint:moved')
  await rename(temporary, target)
  await io.fsync(parent)
  faultPoint('checkpoint:renamed')
  await rm(previous, { recursive: true, force: true })
}

const exists = async (file: string): Promise<boolean> => {
  try {
    await stat(file)
    return true
  } catch {
    return false
  }
}

async function checkSpace(dir: string, bytes: number): Promise<void> {
  const fs = await statfs(dir)
  const free = fs.bavail * fs.bsize
  if (free >= bytes) return
  throw new EffnetError('EFF_CKPT_NO_SPACE', `${dir}: a checkpoint needs ${bytes} bytes, ${free} are free`, {
    hint: 'free some space, then --resume',
    details: { needed: bytes, free },
  })
}

async function writeJson(file: string, value: unknown): Promise<WrittenFile> {
  const bytes = Buffer.from(json(value))
  await writeSynced(file, bytes)
  return { bytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') }
}

const sorted = <T>(o: Record<string, T>): Record<string, T> =>
  Object.fromEntries(Object.entries(o).sort(([a], [b]) => (a < b ? -1 : 1)))

/**
 * The manifest when the folder is a complete checkpoint (it is written last); undefined otherwise. `verifyFolder` checks the files.
 * @throws EFF_CKPT_VERSION written by a newer package
 */
export async function readManifest(dir: string): Promise<Manifest | undefined> {
  const text = await readOptional(path.join(dir, MANIFEST))
  if (text === undefined) return undefined
  let manifest: Manifest
  try {
    manifest = JSON.parse(text) as Manifest
  } catch {
    return undefined
  }
  if (manifest?.format !== MANIFEST_FORMAT || typeof manifest.files !== 'object') return undefined
  if (manifest.version > CHECKPOINT_VERSION) {
    throw new EffnetError(
      'EFF_CKPT_VERSION',
      `${dir}: checkpoint format ${manifest.version}; this package reads up to ${CHECKPOINT_VERSION}`,
      {
        hint: 'update the package effnet-native',
      },
    )
  }
  return manifest
}

/**
 * Sizes and SHA-256 of every file.
 * @throws EFF_CKPT_MISSING, EFF_CKPT_CORRUPT naming the file
 */
export async function verifyFolder(io: FolderIo, dir: string): Promise<Manifest> {
  const manifest = await readManifest(dir)
  if (!manifest) {
    throw new EffnetError('EFF_CKPT_MISSING', `${dir}: no complete checkpoint (no valid ${MANIFEST})`, { details: { path: dir } })
  }
  for (const [name, expected] of Object.entries(manifest.files)) {
    const file = path.join(dir, name)
    const corrupt = (why: string): never => {
      throw new EffnetError('EFF_CKPT_CORRUPT', `${file}: ${why}`, {
        hint: 'use another checkpoint of the run (checkpoints/best, checkpoints/last)',
        details: { path: file },
      })
    }
    if (name !== path.basename(name)) corrupt('the manifest names a file outside the folder')
    if (!(await exists(file))) corrupt('missing')
    const { size } = await stat(file)
    if (size !== expected.bytes) corrupt(`${size} bytes, the manifest says ${expected.bytes}`)
    const actual = await io.hashFile(file)
    if (actual.sha256 !== expected.sha256) corrupt('its contents changed since it was written (SHA-256 differs)')
  }
  return manifest
}

/**
 * The complete folder that stands for `target`: itself, or while it was being replaced, the one set aside.
 * Reading only; `settleFolder` also renames.
 */
export async function findFolder(target: string): Promise<string | undefined> {
  for (const dir of [target, `${target}${PREVIOUS}`]) if (await readManifest(dir)) return dir
  return undefined
}

/** After a crash: puts back what was set aside and removes what was not finished. For the process that will write there. */
export async function settleFolder(io: FolderIo, target: string): Promise<string | undefined> {
  const parent = path.dirname(target)
  const previous = `${target}${PREVIOUS}`
  const temporary = path.join(parent, `${TEMPORARY}${path.basename(target)}`)
  if (!(await readManifest(target))) {
    const candidate = (await readManifest(temporary)) ? temporary : (await readManifest(previous)) ? previous : undefined
    if (candidate) {
      await rm(target, { recursive: true, force: true })
      await rename(candidate, target)
      await io.fsync(parent)
    }
  }
  await rm(temporary, { recursive: true, force: true })
  if (await readManifest(target)) await rm(previous, { recursive: true, force: true })
  return (await readManifest(target)) ? target : undefined
}
