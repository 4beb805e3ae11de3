import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, it } from 'vitest'
import {
  duplicateFolder,
  findFolder,
  MANIFEST,
  readManifest,
  settleFolder,
  startFolder,
  verifyFolder,
} from '../../ts/train/checkpoint_folder.js'
import { content, folderIo } from './helpers/folder_io.js'

const root = mkdtempSync(path.join(os.tmpdir(), 'effnet-ckpt-'))
afterAll(() => rmSync(root, { recursive: true, force: true }))
let made = 0
const fresh = () => {
  const dir = path.join(root, String(made++))
  mkdirSync(dir)
  return dir
}
const save = async (target: string, step: number, value: string) => {
  const { done } = await startFolder(folderIo, target, content(step, value))
  return done
}
const code = (c: string) => expect.objectContaining({ code: c })

describe('a checkpoint folder', () => {
  it('is written whole, replaced, and leaves nothing beside it', async () => {
    const dir = fresh()
    const last = path.join(dir, 'last')
    await save(last, 1, 'one')
    await save(last, 2, 'two')
    expect((await verifyFolder(folderIo, last)).step).toBe(2)
    expect(readFileSync(path.join(last, 'model.safetensors'), 'utf8')).toBe('two')
    expect(readdirSync(dir)).toEqual(['last'])
  })

  it('is duplicated without rewriting', async () => {
    const dir = fresh()
    const [last, best] = [path.join(dir, 'last'), path.join(dir, 'best')]
    await save(last, 1, 'one')
    await duplicateFolder(folderIo, last, best)
    await save(last, 2, 'two')
    expect((await verifyFolder(folderIo, best)).step).toBe(1)
    expect(readFileSync(path.join(best, 'model.safetensors'), 'utf8')).toBe('one')
  })

  it('names the file that changed', async () => {
    const last = path.join(fresh(), 'last')
    await save(last, 1, 'one')
    writeFileSync(path.join(last, 'model.safetensors'), 'onE')
    await expect(verifyFolder(folderIo, last)).rejects.toThrow(/model\.safetensors: its contents changed/)
    writeFileSync(path.join(last, 'model.safetensors'), 'longer')
    await expect(verifyFolder(folderIo, last)).rejects.toThrow(/6 bytes, the manifest says 3/)
    rmSync(path.join(last, 'model.safetensors'))
    await expect(verifyFolder(folderIo, last)).rejects.toThrow(code('EFF_CKPT_CORRUPT'))
    rmSync(path.join(last, MANIFEST))
    await expect(verifyFolder(folderIo, last)).rejects.toThrow(code('EFF_CKPT_MISSING'))
    expect(await findFolder(last)).toBeUndefined()
  })

  it('of a newer format is refused', async () => {
    const last = path.join(fresh(), 'last')
    await save(last, 1, 'one')
    const manifest = JSON.parse(readFileSync(path.join(last, MANIFEST), 'utf8'))
    writeFileSync(path.join(last, MANIFEST), JSON.stringify({ ...manifest, version: 99 }))
    await expect(readManifest(last)).rejects.toThrow(code('EFF_CKPT_VERSION'))
  })

  it('does not exist half-written: a manifest that names files elsewhere, or no JSON', async () => {
    const last = path.join(fresh(), 'last')
    await save(last, 1, 'one')
    const manifest = JSON.parse(readFileSync(path.join(last, MANIFEST), 'utf8'))
    manifest.files['../escape'] = manifest.files['state.json']
    writeFileSync(path.join(last, MANIFEST), JSON.stringify(manifest))
    await expect(verifyFolder(folderIo, last)).rejects.toThrow(/outside the folder/)
    writeFileSync(path.join(last, MANIFEST), '{"format":')
    expect(await readManifest(last)).toBeUndefined()
  })

  it('fails before it writes when the disk is too full, and keeps the old one', async () => {
    const dir = fresh()
    const last = path.join(dir, 'last')
    await save(last, 1, 'one')
    await expect(startFolder(folderIo, last, content(2, 'two', 1e18))).rejects.toThrow(code('EFF_CKPT_NO_SPACE'))
    expect((await verifyFolder(folderIo, last)).step).toBe(1)
  })

  it('keeps the old one when writing fails, and removes the rest', async () => {
    const dir = fresh()
    const last = path.join(dir, 'last')
    await save(last, 1, 'one')
    const broken = {
      ...content(2, 'two'),
      writeTensors: () => Promise.reject(Object.assign(new Error('no space'), { code: 'ENOSPC' })),
    }
    const { done } = await startFolder(folderIo, last, broken)
    await expect(done).rejects.toThrow(code('EFF_CKPT_NO_SPACE'))
    expect((await verifyFolder(folderIo, last)).step).toBe(1)
    expect(readdirSync(dir)).toEqual(['last'])
  })
})

describe('a process killed while it saves', () => {
  const child = path.join(path.dirname(fileURLToPath(import.meta.url)), 'helpers/save_child.ts')

  it.each([
    ['checkpoint:tensors', 1],
    ['checkpoint:json', 1],
    ['checkpoint:manifest', 1],
    ['checkpoint:moved', 2],
    ['checkpoint:renamed', 2],
  ])('at %s leaves step %d complete', async (fault, step) => {
    const dir = fresh()
    const [last, best] = [path.join(dir, 'last'), path.join(dir, 'best')]
    const run = spawnSync(process.execPath, ['--import', 'tsx', child, last, best, fault], { encoding: 'utf8', timeout: 60_000 })
    expect(run.signal, run.stderr).toBe('SIGKILL')
    // A reader finds a complete one without changing anything...
    const found = await findFolder(last)
    const seen = await verifyFolder(folderIo, found!)
    expect([1, 2]).toContain(seen.step)
    // ...and the process that continues has the newest complete one in its place.
    expect(await settleFolder(folderIo, last)).toBe(last)
    expect((await verifyFolder(folderIo, last)).step).toBe(step)
    expect((await verifyFolder(folderIo, best)).step).toBe(1)
    expect(readdirSync(dir).sort()).toEqual(['best', 'last'])
    await save(last, 3, 'three')
    expect((await verifyFolder(folderIo, last)).step).toBe(3)
  })

  it('with nothing complete leaves nothing', async () => {
    const dir = fresh()
    mkdirSync(path.join(dir, '.writing-last'))
    writeFileSync(path.join(dir, '.writing-last/model.safetensors'), 'half')
    expect(await settleFolder(folderIo, path.join(dir, 'last'))).toBeUndefined()
    expect(existsSync(path.join(dir, '.writing-last'))).toBe(false)
  })
})
