import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { imageFolder } from '../../ts/data/image_folder.js'

const root = mkdtempSync(path.join(os.tmpdir(), 'effnet-folder-'))
afterAll(() => rmSync(root, { recursive: true, force: true }))

let made = 0
/** A folder with these files. */
function tree(files: readonly string[]): string {
  const dir = path.join(root, String(made++))
  for (const file of files) {
    mkdirSync(path.dirname(path.join(dir, file)), { recursive: true })
    writeFileSync(path.join(dir, file), 'x')
  }
  return dir
}

const code = (c: string) => expect.objectContaining({ code: c })

describe('imageFolder', () => {
  it('reads train and validation with classes and files as torchvision sorts them', async () => {
    const dir = tree([
      'train/b/2.jpg',
      'train/b/10.JPG',
      'train/b/sub/1.png',
      'train/B/x.webp',
      'train/ä/y.tiff',
      'train/ä/.hidden.jpg',
      'train/ä/note.txt',
      'train/.cache/z.jpg',
      'validation/b/1.jpeg',
      'validation/B/1.jpeg',
      'validation/ä/1.avif',
    ])
    const data = await imageFolder(dir)
    expect(data.classes).toEqual(['B', 'b', 'ä'])
    expect(data.train.files.map((f) => path.relative(data.train.root, f))).toEqual([
      'B/x.webp',
      'b/10.JPG',
      'b/2.jpg',
      'b/sub/1.png',
      'ä/y.tiff',
    ])
    expect([...data.train.labels]).toEqual([0, 1, 1, 1, 2])
    expect(data.val?.length).toBe(3)
  })

  it('sorts names beyond the basic plane after all others', async () => {
    const dir = tree(['\u{1f600}/a.jpg', '\uffee/a.jpg', 'z/a.jpg'])
    expect((await imageFolder(dir)).classes).toEqual(['z', '\uffee', '\u{1f600}'])
  })

  it('takes a folder of classes, and holds out a stratified part that depends on the seed only', async () => {
    const dir = tree([...Array(10).keys()].flatMap((i) => [`cat/${i}.jpg`, `dog/${i}.png`]).concat('rare/1.jpg'))
    expect((await imageFolder(dir)).val).toBeUndefined()
    const a = await imageFolder(dir, { valSplit: 0.2, seed: 3 })
    const b = await imageFolder(dir, { valSplit: 0.2, seed: 3 })
    const c = await imageFolder(dir, { valSplit: 0.2, seed: 4 })
    expect([...a.val!.labels]).toEqual([0, 0, 1, 1])
    expect(a.train.length).toBe(17)
    expect(new Set([...a.train.files, ...a.val!.files]).size).toBe(21)
    expect(b.val!.files).toEqual(a.val!.files)
    expect(c.val!.files).not.toEqual(a.val!.files)
  })

  it('gives one split', async () => {
    const dir = tree(['train/a/1.jpg', 'train/b/1.jpg', 'val/a/2.jpg', 'val/b/2.jpg'])
    expect((await imageFolder(dir, { split: 'val' })).files[0]).toMatch(/2\.jpg$/)
    expect((await imageFolder(dir, { split: 'train' })).length).toBe(2)
    expect((await imageFolder(path.join(dir, 'val'), { split: 'val' })).length).toBe(2)
  })

  it('names what is wrong', async () => {
    await expect(imageFolder(path.join(root, 'nowhere'))).rejects.toThrow(code('EFF_DATA_MISSING'))
    await expect(imageFolder(tree(['1.jpg']))).rejects.toThrow(code('EFF_DATA_EMPTY'))
    await expect(imageFolder(tree(['a/1.jpg', 'b/readme.txt']))).rejects.toThrow(/no images in 1 of 2 class folders: b/)
    const differ = tree(['train/a/1.jpg', 'train/b/1.jpg', 'val/a/1.jpg', 'val/c/1.jpg'])
    await expect(imageFolder(differ)).rejects.toThrow(/only in .*train: b; only in .*val: c/)
    await expect(imageFolder(tree(['train/a/1.jpg']), { split: 'val' })).rejects.toThrow(code('EFF_DATA_MISSING'))
    await expect(imageFolder(tree(['val/a/1.jpg']))).rejects.toThrow(code('EFF_DATA_MISSING'))
  })

  it('takes the first n', async () => {
    const data = await imageFolder(tree(['a/1.jpg', 'a/2.jpg', 'b/1.jpg']))
    expect([...data.train.take(2).labels]).toEqual([0, 0])
  })
})
