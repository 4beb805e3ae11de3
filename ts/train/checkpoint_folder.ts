/**
 * Folders that exist whole or not at all. A checkpoint is written under a temporary name (tensors fsynced and hashed by the
 * engine, JSON files, manifest last), then renamed, then its parent is fsynced. A folder without a manifest does not exist; one
 * whose manifest or files changed is damaged. While `last` is replaced the old one is set aside as `last.prev`, so that at every
 * instant one of the two is whole. Every operation that writes goes through `operate`: tests let each of them fail.
 */
import { createHash } from 'node:crypto'
import { copyFile, link, mkdir, open, readdir, rename, rm, stat, statfs } from 'node:fs/promises'
import path from 'node:path'
import type { WrittenFile } from '../binding.js'
import { EffnetError } from '../errors.js'
import { changedPart } from './damage.js'
import { type FaultSource, operate } from './fault.js'
import { exists, ioError, json, makeFolders, readOptional } from './files.js'

export const MANIFEST = 'manifest.json'
const MANIFEST_FORMAT = 'effnet-checkpoint'
/** Of model.json and state.json. */
export const CHECKPOINT_VERSION = 1
/** 2: with the manifest's own SHA-256. */
const MANIFEST_VERSION = 2
const TEMPORARY = '.writing-'
const PREVIOUS = '.prev'
const DAMAGED = '.damaged'

export interface Manifest {
  format: typeof MANIFEST_FORMAT
  version: number
  step: number
  files: Record<string, WrittenFile>
  /** Of this object without this key, as `json` prints it. */
  sha256?: string
}

/** What of the addon a checkpoint needs. */
export interface FolderIo extends FaultSource {
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

export interface FolderOptions {
  /** What was there before stays as `target.prev` until the next save; removed first where space is short. */
  keepPrevious?: boolean
}

/** Where the folder before `target` is kept. */
export const previousOf = (target: string): string => `${target}${PREVIOUS}`
const temporaryOf = (target: string): string => path.join(path.dirname(target), `${TEMPORARY}${path.basename(target)}`)

/**
 * Starts to write `content` as folder `target`; what was there stays until the new one is complete. On return the tensors
 * have been copied, so training may go on; `done` resolves to the bytes written.
 */
export async function startFolder(
  io: FolderIo,
  target: string,
  content: FolderContent,
  options: FolderOptions = {},
): Promise<{ done: Promise<number> }> {
  const parent = path.dirname(target)
  const temporary = temporaryOf(target)
  await refuseForeign(target)
  try {
    await makeFolders(parent)
    await removeFolder(io, temporary)
    await makeSpace(io, target, content.bytes)
    await operate(io, 'mkdir', temporary, () => mkdir(temporary))
  } catch (cause) {
    throw ioError(cause, target)
  }
  const done = finishFolder(io, temporary, target, content, options)
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

async function finishFolder(
  io: FolderIo,
  temporary: string,
  target: string,
  content: FolderContent,
  options: FolderOptions,
): Promise<number> {
  try {
    const files = { ...(await content.writeTensors(temporary)) }
    for (const [name, value] of Object.entries(content.json)) files[name] = await writeJson(io, path.join(temporary, name), value)
    const manifest: Manifest = { format: MANIFEST_FORMAT, version: MANIFEST_VERSION, step: content.step, files: sorted(files) }
    await writeSaved(io, path.join(temporary, MANIFEST), Buffer.from(json({ ...manifest, sha256: hashOf(manifest) })))
    await io.fsync(temporary)
    await promote(io, temporary, target, options)
    return Object.values(files).reduce((sum, f) => sum + f.bytes, 0)
  } catch (cause) {
    await discard(io, temporary)
    throw ioError(cause, target)
  }
}

/** Makes `target` a second folder of the same files (hard links, or copies where the file system has none). */
export async function duplicateFolder(io: FolderIo, source: string, target: string): Promise<void> {
  const temporary = temporaryOf(target)
  try {
    const manifest = await readManifest(source)
    if (!manifest) throw new EffnetError('EFF_CKPT_MISSING', `${source}: no complete checkpoint`)
    await removeFolder(io, temporary)
    await operate(io, 'mkdir', temporary, () => mkdir(temporary))
    for (const name of [...Object.keys(manifest.files), MANIFEST]) {
      await linkOrCopy(io, path.join(source, name), path.join(temporary, name))
    }
    await io.fsync(temporary)
    await promote(io, temporary, target, {})
  } catch (cause) {
    await discard(io, temporary)
    throw ioError(cause, target)
  }
}

async function linkOrCopy(io: FolderIo, from: string, to: string): Promise<void> {
  try {
    await operate(io, 'link', to, () => link(from, to))
  } catch {
    await operate(io, 'copy', to, () => copyFile(from, to))
    await io.fsync(to)
  }
}

async function promote(io: FolderIo, temporary: string, target: string, { keepPrevious }: FolderOptions): Promise<void> {
  const parent = path.dirname(target)
  const previous = previousOf(target)
  if (await exists(target)) {
    await removeFolder(io, previous)
    await operate(io, 'rename', target, () => rename(target, previous))
  }
  try {
    await operate(io, 'rename', temporary, () => rename(temporary, target))
  } catch (cause) {
    // Readers find it under either name; under its own nobody needs to look.
    if (!(await exists(target))) await rename(previous, target).catch(() => undefined)
    throw cause
  }
  await io.fsync(parent)
  if (!keepPrevious) await removeFolder(io, previous)
}

/** The manifest first: a folder that is half removed does not exist. */
async function removeFolder(io: FolderIo, dir: string): Promise<void> {
  if (!(await exists(dir))) return
  const manifest = path.join(dir, MANIFEST)
  await operate(io, 'remove', manifest, () => rm(manifest, { force: true }))
  await operate(io, 'remove', dir, () => rm(dir, { recursive: true, force: true }))
}

/** After a failure, whose error is the one to tell. */
const discard = (io: FolderIo, dir: string): Promise<void> => removeFolder(io, dir).catch(() => undefined)

/** Room for `bytes` beside what is there; the checkpoint before the last one gives way where the last one is whole. */
async function makeSpace(io: FolderIo, target: string, bytes: number): Promise<void> {
  const dir = path.dirname(target)
  const free = async (): Promise<number> => {
    const fs = await statfs(dir)
    return fs.bavail * fs.bsize
  }
  if ((await free()) >= bytes) return
  if (await readManifest(target).catch(() => undefined)) await removeFolder(io, previousOf(target))
  const left = await free()
  if (left >= bytes) return
  const mebibytes = (n: number): string => `${(n / 2 ** 20).toFixed(1)} MiB`
  const begun = await findFolder(target).catch(unlessCorrupt)
  throw new EffnetError('EFF_CKPT_NO_SPACE', `${dir}: a checkpoint needs ${mebibytes(bytes)}, ${mebibytes(left)} are free`, {
    hint: begun ? 'free some space, then --resume' : 'free some space and run it again, or write elsewhere: --out DIR',
    details: { needed: bytes, free: left },
  })
}

async function writeJson(io: FolderIo, file: string, value: unknown): Promise<WrittenFile> {
  const bytes = Buffer.from(json(value))
  await writeSaved(io, file, bytes)
  return { bytes: bytes.length, sha256: sha256(bytes) }
}

async function writeSaved(io: FolderIo, file: string, bytes: Uint8Array): Promise<void> {
  const create = () => open(file, 'w')
  const handle = await operate(io, 'create', file, create, async () => (await create()).close())
  try {
    const half = bytes.subarray(0, bytes.length >> 1)
    await operate(
      io,
      'write',
      file,
      () => handle.writeFile(bytes),
      () => handle.writeFile(half),
    )
    await operate(io, 'fsync', file, () => handle.sync())
  } finally {
    await handle.close()
  }
}

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

function hashOf({ sha256: _, ...manifest }: Manifest): string {
  return sha256(Buffer.from(json(manifest)))
}

const sorted = <T>(o: Record<string, T>): Record<string, T> =>
  Object.fromEntries(Object.entries(o).sort(([a], [b]) => (a < b ? -1 : 1)))

const corrupt = (file: string, why: string): EffnetError =>
  new EffnetError('EFF_CKPT_CORRUPT', `${file}: ${why}`, {
    hint: 'use another checkpoint of the run (checkpoints/best, checkpoints/last)',
    details: { path: file },
  })

export const isCorrupt = (cause: unknown): cause is EffnetError =>
  cause instanceof EffnetError && cause.code === 'EFF_CKPT_CORRUPT'

/**
 * The manifest of a folder (it is written last: with it the folder is complete); undefined where there is none.
 * `verifyFolder` checks the files.
 * @throws EFF_CKPT_CORRUPT where it changed since it was written, EFF_CKPT_VERSION written by a newer package
 */
export async function readManifest(dir: string): Promise<Manifest | undefined> {
  const file = path.join(dir, MANIFEST)
  const text = await readOptional(file)
  if (text === undefined) return undefined
  let manifest: Manifest
  try {
    manifest = JSON.parse(text) as Manifest
  } catch (cause) {
    throw corrupt(file, `changed since it was written: ${(cause as Error).message}`)
  }
  if (manifest?.format !== MANIFEST_FORMAT || typeof manifest.files !== 'object' || manifest.files === null) {
    throw corrupt(file, `changed since it was written: it is not of format ${MANIFEST_FORMAT}`)
  }
  // Version 1 had no hash. The text is compared too: nothing in it may change, not even what means the same.
  if (manifest.version !== 1 && (manifest.sha256 !== hashOf(manifest) || text !== json(manifest))) {
    throw corrupt(file, 'changed since it was written (SHA-256 differs)')
  }
  if (manifest.version > MANIFEST_VERSION) {
    throw new EffnetError(
      'EFF_CKPT_VERSION',
      `${dir}: checkpoint format ${manifest.version}; this package reads up to ${MANIFEST_VERSION}`,
      {
        hint: 'update the package effnet-native',
      },
    )
  }
  return manifest
}

/**
 * Sizes and SHA-256 of every file, the smallest first.
 * @throws EFF_CKPT_MISSING, EFF_CKPT_CORRUPT naming the file, and the tensor where one changed
 */
export async function verifyFolder(io: FolderIo, dir: string): Promise<Manifest> {
  const manifest = await readManifest(dir)
  if (!manifest) {
    throw new EffnetError('EFF_CKPT_MISSING', `${dir}: no complete checkpoint (no ${MANIFEST})`, { details: { path: dir } })
  }
  const files = Object.entries(manifest.files).sort(([, a], [, b]) => a.bytes - b.bytes)
  for (const [name, expected] of files) {
    const file = path.join(dir, name)
    if (name !== path.basename(name)) throw corrupt(file, 'the manifest names a file outside the folder')
    if (!(await exists(file))) throw corrupt(file, 'missing')
    const { size } = await stat(file)
    if (size !== expected.bytes) throw corrupt(file, `${size} bytes, the manifest says ${expected.bytes}`)
    const actual = await io.hashFile(file)
    if (actual.sha256 !== expected.sha256) {
      throw corrupt(file, `${await changedPart(file, expected)} changed since it was written (SHA-256 differs)`)
    }
  }
  return manifest
}

/**
 * The complete folder that stands for `target`: itself, or while it was being replaced, the one set aside.
 * Reading only; `settleFolder` also renames.
 * @throws EFF_CKPT_CORRUPT when the manifest of the one that stands there changed
 */
export async function findFolder(target: string): Promise<string | undefined> {
  for (const dir of [target, previousOf(target)]) if (await readManifest(dir)) return dir
  return undefined
}

/**
 * After a crash: puts back what was set aside and removes what was not finished. For the process that will write there. A
 * damaged `target` is left as it is.
 */
export async function settleFolder(io: FolderIo, target: string, { keepPrevious }: FolderOptions = {}): Promise<void> {
  const previous = previousOf(target)
  const temporary = temporaryOf(target)
  const complete = (dir: string) => readManifest(dir).catch(unlessCorrupt)
  try {
    if (!(await exists(path.join(target, MANIFEST)))) {
      const candidate = (await complete(temporary)) ? temporary : (await complete(previous)) ? previous : undefined
      if (candidate) {
        await removeFolder(io, target)
        await operate(io, 'rename', candidate, () => rename(candidate, target))
        await io.fsync(path.dirname(target))
      }
    }
    await removeFolder(io, temporary)
    if (!keepPrevious && (await complete(target))) await removeFolder(io, previous)
  } catch (cause) {
    throw ioError(cause, target)
  }
}

function unlessCorrupt(cause: unknown): undefined {
  if (!isCorrupt(cause)) throw cause
}

/**
 * Makes room for a sound checkpoint where a damaged one stands: it is kept as `target.damaged`, and `sound`, where it is the
 * one before, takes its place. Returns where the sound one is now.
 */
export async function setAside(io: FolderIo, target: string, sound: string): Promise<string> {
  const damaged = `${target}${DAMAGED}`
  try {
    if (await exists(target)) {
      await removeFolder(io, damaged)
      await operate(io, 'rename', target, () => rename(target, damaged))
    }
    if (sound !== previousOf(target)) return sound
    await operate(io, 'rename', sound, () => rename(sound, target))
    await io.fsync(path.dirname(target))
    return target
  } catch (cause) {
    throw ioError(cause, target)
  }
}
