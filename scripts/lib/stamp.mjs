/** Stamps: the content hash of a step's inputs, kept under .cache/stamps once the step has succeeded. */
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { cache, root } from './run.mjs'

const folder = path.join(cache, 'stamps')

export const sha256 = (data) => createHash('sha256').update(data).digest('hex')
export const sha256File = (file) => sha256(readFileSync(file))

/** Files under `entry` (a file or folder, relative to the root) in a stable order. */
export function filesUnder(entry) {
  const absolute = path.join(root, entry)
  if (!existsSync(absolute)) return []
  if (!statSync(absolute).isDirectory()) return [entry]
  return readdirSync(absolute, { withFileTypes: true })
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((e) => (e.isDirectory() ? filesUnder(path.join(entry, e.name)) : [path.join(entry, e.name)]))
}

/** Hash of the names and contents of `entries`, and of `extra` values that change the result. */
export function hashInputs(entries, extra = []) {
  const hash = createHash('sha256').update(JSON.stringify(extra))
  for (const file of entries.flatMap(filesUnder)) hash.update(`\0${file}\0`).update(readFileSync(path.join(root, file)))
  return hash.digest('hex')
}

/** True when the step last succeeded with these inputs and everything it made is still there. */
export function isCurrent(name, hash, outputs) {
  const file = path.join(folder, name)
  if (!existsSync(file) || readFileSync(file, 'utf8').trim() !== hash) return false
  return outputs.every((o) => existsSync(path.join(root, o)))
}

export function writeStamp(name, hash) {
  mkdirSync(folder, { recursive: true })
  const file = path.join(folder, name)
  writeFileSync(`${file}.${process.pid}`, `${hash}\n`)
  renameSync(`${file}.${process.pid}`, file)
}
