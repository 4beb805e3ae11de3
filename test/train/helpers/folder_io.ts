/**
 * The addon's part of checkpoints, in plain Node: the folder logic is tested without a build. `faulty` lets one operation go
 * wrong; after a death every operation fails, as nothing of a dead process reaches the disk.
 */
import { createHash } from 'node:crypto'
import { open, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { SaveFault } from '../../../ts/binding.js'
import type { FolderContent, FolderIo } from '../../../ts/train/checkpoint_folder.js'
import { operate } from '../../../ts/train/fault.js'

export type Kind = 'kill' | 'torn' | 'ENOSPC' | 'EIO'

export class Death extends Error {
  readonly code = 'EIO'
}

export interface CountingIo extends FolderIo {
  /** Operations so far, as "rename last". */
  operations: string[]
}

export function faulty(at = 0, kind: Kind = 'kill'): CountingIo {
  let dead = false
  const die = (): never => {
    dead = true
    throw new Death('the process is dead')
  }
  const io: CountingIo = {
    operations: [],
    saveOperation(operation, file): SaveFault {
      if (dead) return die()
      io.operations.push(`${operation} ${path.basename(file)}`)
      if (io.operations.length !== at) return 'none'
      return kind === 'kill' ? die() : kind
    },
    die,
    fsync: (file) =>
      operate(io, 'fsync', file, async () => {
        const handle = await open(file, 'r')
        await handle.sync()
        await handle.close()
      }),
    async hashFile(file) {
      const bytes = await readFile(file)
      return { bytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') }
    },
  }
  return io
}

export const folderIo: FolderIo = faulty()

/** A checkpoint whose tensor file holds `value`. */
export const content = (step: number, value: string, io: FolderIo = folderIo, bytes = 1): FolderContent => ({
  step,
  bytes,
  writeTensors: async (dir) => {
    const file = path.join(dir, 'model.safetensors')
    await operate(
      io,
      'write',
      file,
      () => writeFile(file, value),
      () => writeFile(file, value.slice(1)),
    )
    return { 'model.safetensors': await io.hashFile(file) }
  },
  json: { 'state.json': { step } },
})
