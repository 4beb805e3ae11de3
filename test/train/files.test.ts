import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { expect, it } from 'vitest'
import { makeFolders } from '../../ts/train/files.js'

it('makes folders, bears those that exist, and ends where none can be made', async () => {
  const dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-folders-'))
  try {
    const deep = path.join(dir, 'a/b/c')
    await Promise.all([makeFolders(deep), makeFolders(deep)])
    await makeFolders(deep)
    expect(existsSync(deep)).toBe(true)
    writeFileSync(path.join(dir, 'file'), '')
    await expect(makeFolders(path.join(dir, 'file/below'))).rejects.toThrow()
    await expect(makeFolders('/proc/effnet/none')).rejects.toThrow()
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
}, 5000)
