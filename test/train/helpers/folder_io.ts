/** The addon's part of checkpoints, in plain Node: the folder logic is tested without a build. */
import { createHash } from 'node:crypto'
import { open, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { FolderContent, FolderIo } from '../../../ts/train/checkpoint_folder.js'

export const folderIo: FolderIo = {
  async fsync(file) {
    const handle = await open(file, 'r')
    await handle.sync()
    await handle.close()
  },
  async hashFile(file) {
    const bytes = await readFile(file)
    return { bytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') }
  },
}

/** A checkpoint whose tensor file holds `value`. */
export const content = (step: number, value: string, bytes = 1): FolderContent => ({
  step,
  bytes,
  writeTensors: async (dir) => {
    const file = path.join(dir, 'model.safetensors')
    await writeFile(file, value)
    return { 'model.safetensors': await folderIo.hashFile(file) }
  },
  json: { 'state.json': { step } },
})
