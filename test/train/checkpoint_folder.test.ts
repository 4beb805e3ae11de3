import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { philoxU32 } from '../../ts/graph/philox.js'
import {
  duplicateFolder,
  findFolder,
  MANIFEST,
  previousOf,
  readManifest,
  setAside,
  settleFolder,
  startFolder,
  verifyFolder,
} from '../../ts/train/checkpoint_folder.js'
import { type CountingIo, content, faulty, folderIo } from './helpers/folder_io.js'

// In memory where there is such a folder: thousands of fsyncs then cost nothing.
const root = mkdtempSync(path.join(existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir(), 'effnet-ckpt-'))
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
    const newer = { ...manifest, version: 99, sha256: undefined }
    const sha256 = createHash('sha256')
      .update(`${JSON.stringify(newer, null, 2)}\n`)
      .digest('hex')
    writeFileSync(path.join(last, MANIFEST), `${JSON.stringify({ ...newer, sha256 }, null, 2)}\n`)
    await expect(readManifest(last)).rejects.toThrow(code('EFF_CKPT_VERSION'))
  })

  it('of version 1 has no hash of the manifest; files elsewhere are refused in any', async () => {
    const last = path.join(fresh(), 'last')
    await save(last, 1, 'one')
    const { sha256: _, ...manifest } = JSON.parse(readFileSync(path.join(last, MANIFEST), 'utf8'))
    writeFileSync(path.join(last, MANIFEST), JSON.stringify({ ...manifest, version: 1 }))
    expect((await verifyFolder(folderIo, last)).step).toBe(1)
    manifest.files['../escape'] = manifest.files['state.json']
    writeFileSync(path.join(last, MANIFEST), JSON.stringify({ ...manifest, version: 1 }))
    await expect(verifyFolder(folderIo, last)).rejects.toThrow(/outside the folder/)
  })

  it.each(['', '{"format":', 'null', '{"format": "effnet-checkpoint", "files": null}', '{"version": 1}'])(
    'with the manifest %j is damaged',
    async (text) => {
      const last = path.join(fresh(), 'last')
      await save(last, 1, 'one')
      writeFileSync(path.join(last, MANIFEST), text)
      await expect(readManifest(last)).rejects.toThrow(/manifest\.json: changed since it was written/)
      await expect(verifyFolder(folderIo, last)).rejects.toThrow(code('EFF_CKPT_CORRUPT'))
    },
  )

  it('fails before it writes when the disk is too full, and keeps the old one', async () => {
    const dir = fresh()
    const last = path.join(dir, 'last')
    await save(last, 1, 'one')
    await expect(startFolder(folderIo, last, content(2, 'two', folderIo, 1e18))).rejects.toThrow(code('EFF_CKPT_NO_SPACE'))
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

/** What a run does with its folders: saves 1 (best), 2, 3 (best). Returns the steps whose save was reported complete. */
async function saves(io: CountingIo, dir: string): Promise<number[]> {
  const [last, best] = [path.join(dir, 'last'), path.join(dir, 'best')]
  const complete: number[] = []
  for (const [step, isBest] of [
    [1, true],
    [2, false],
    [3, true],
  ] as const) {
    await (await startFolder(io, last, content(step, `weights of ${step}`, io), { keepPrevious: true })).done
    complete.push(step)
    if (isBest) await duplicateFolder(io, last, best)
  }
  return complete
}

const stepOf = async (target: string): Promise<number | undefined> => {
  const found = await findFolder(target)
  return found === undefined ? undefined : (await verifyFolder(folderIo, found)).step
}

describe('a process killed at any operation of its saves, or told that there is no space, or of an I/O error', () => {
  const kinds = ['kill', 'torn', 'ENOSPC', 'EIO'] as const

  it.each(kinds)('%s: at every instant the newest checkpoint is whole, and the next process goes on', async (kind) => {
    const whole = faulty()
    const undisturbed = fresh()
    await saves(whole, undisturbed)
    expect(readdirSync(undisturbed).sort()).toEqual(['best', 'last', 'last.prev'])
    expect(whole.operations.length).toBeGreaterThan(50)
    for (let at = 1; at <= whole.operations.length; at++) {
      const dir = fresh()
      const io = faulty(at, kind)
      const where = `${kind} at ${at}: ${whole.operations[at - 1]}`
      const outcome = await saves(io, dir).catch((cause) => cause as Error & { code: string })
      // A link that cannot be made is a copy.
      if (Array.isArray(outcome)) expect(where).toMatch(/(ENOSPC|EIO) at \d+: link/)
      else if (kind === 'ENOSPC') expect(outcome.code, where).toBe('EFF_CKPT_NO_SPACE')
      else if (kind === 'EIO') expect(outcome.code, where).toBe('EFF_IO')
      // What is whole before the next process touches anything, and after it has settled.
      const [last, best] = [path.join(dir, 'last'), path.join(dir, 'best')]
      const promoted = io.operations.filter((o) => o === 'fsync .writing-last').length
      const seen = await stepOf(last)
      if (promoted > 1) expect(seen, where).toBeGreaterThanOrEqual(promoted - 1)
      await settleFolder(folderIo, best)
      await settleFolder(folderIo, last, { keepPrevious: true })
      const settled = await stepOf(last)
      expect(settled ?? 0, where).toBeGreaterThanOrEqual(seen ?? 0)
      expect(await stepOf(best), where).toSatisfy((step: unknown) => step === undefined || step === 1 || step === 3)
      expect(
        readdirSync(dir).filter((name) => name.startsWith('.writing')),
        where,
      ).toEqual([])
      await saves(folderIo as CountingIo, dir)
      expect([await stepOf(last), await stepOf(best)], where).toEqual([3, 3])
    }
  })

  it('killed again at any operation of putting things back', async () => {
    // The two instants that leave something to put back: after `last` was set aside, and after `best` was.
    const { operations } = await (async (io) => {
      await saves(io, fresh())
      return io
    })(faulty())
    const first = operations.flatMap((o, i) => (/^rename \.writing/.test(o) ? [i + 1] : []))
    for (const at of first) {
      for (let again = 1; ; again++) {
        const dir = fresh()
        const [last, best] = [path.join(dir, 'last'), path.join(dir, 'best')]
        await expect(saves(faulty(at), dir)).rejects.toThrow()
        const seen = await stepOf(last)
        const io = faulty(again)
        const died = await (async () => {
          await settleFolder(io, best)
          await settleFolder(io, last, { keepPrevious: true })
        })().then(
          () => false,
          () => true,
        )
        await settleFolder(folderIo, best)
        await settleFolder(folderIo, last, { keepPrevious: true })
        expect((await stepOf(last)) ?? 0, `${at}, then ${again}`).toBeGreaterThanOrEqual(seen ?? 1)
        if (!died) break
      }
    }
  })

  it('with nothing complete leaves nothing', async () => {
    const dir = fresh()
    mkdirSync(path.join(dir, '.writing-last'))
    writeFileSync(path.join(dir, '.writing-last/model.safetensors'), 'half')
    await settleFolder(folderIo, path.join(dir, 'last'))
    expect(await findFolder(path.join(dir, 'last'))).toBeUndefined()
    expect(existsSync(path.join(dir, '.writing-last'))).toBe(false)
  })
})

describe('a damaged checkpoint', () => {
  it('a bit in any byte of its files is found, and the file is named', async () => {
    const last = path.join(fresh(), 'last')
    await save(last, 1, 'one')
    for (const name of readdirSync(last)) {
      const file = path.join(last, name)
      const sound = readFileSync(file)
      for (let at = 0; at < sound.length; at++) {
        const bytes = Buffer.from(sound)
        bytes[at]! ^= 1 << (philoxU32(1, 0, 0, at) & 7)
        writeFileSync(file, bytes)
        const error = await verifyFolder(folderIo, last).catch((e) => e as Error & { code: string })
        expect(error, `${name}, byte ${at}`).toMatchObject({ code: 'EFF_CKPT_CORRUPT' })
        expect((error as Error).message).toContain(file)
      }
      writeFileSync(file, sound)
    }
    expect((await verifyFolder(folderIo, last)).step).toBe(1)
  })

  it('is set aside for the one before it', async () => {
    const last = path.join(fresh(), 'last')
    for (const step of [1, 2]) {
      await (await startFolder(folderIo, last, content(step, String(step)), { keepPrevious: true })).done
    }
    expect(await setAside(folderIo, last, previousOf(last))).toBe(last)
    expect((await verifyFolder(folderIo, last)).step).toBe(1)
    expect((await verifyFolder(folderIo, `${last}.damaged`)).step).toBe(2)
    expect(await findFolder(previousOf(last))).toBeUndefined()
  })
})
