import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { expandInputs } from '../../ts/cli/inputs.js'

describe('images that words name', () => {
  let root: string
  const at = (...names: string[]) => names.map((n) => `${root}/${n}`)

  beforeAll(() => {
    root = mkdtempSync(path.join(os.tmpdir(), 'effnet-inputs-'))
    for (const dir of ['a/deep', 'b', 'none', '.hidden']) mkdirSync(path.join(root, dir), { recursive: true })
    for (const file of [
      'z.jpg',
      'a/2.png',
      'a/10.JPG',
      'a/note.txt',
      'a/.x.jpg',
      'a/deep/1.webp',
      'b/c[1].jpeg',
      '.hidden/h.jpg',
    ])
      writeFileSync(path.join(root, file), '')
  })
  afterAll(() => rmSync(root, { recursive: true, force: true }))

  it('keeps files as given and in order, twice where given twice, whatever their name', async () => {
    const words = [...at('z.jpg', 'a/note.txt', 'z.jpg'), path.relative(process.cwd(), `${root}/z.jpg`)]
    expect(await expandInputs(words)).toEqual(words)
  })

  it('walks folders, images only, sorted by name in each folder', async () => {
    expect(await expandInputs([`${root}/a`])).toEqual(at('a/10.JPG', 'a/2.png', 'a/deep/1.webp'))
    expect(await expandInputs([`${root}/b`, `${root}/z.jpg`])).toEqual(at('b/c[1].jpeg', 'z.jpg'))
  })

  it.each([
    ['*.jpg', ['z.jpg']],
    ['a/*', ['a/10.JPG', 'a/2.png', 'a/deep/1.webp']],
    ['a/?.png', ['a/2.png']],
    ['{a,b}/[0-9]*', ['a/10.JPG', 'a/2.png']],
    ['a/[!1]*.png', ['a/2.png']],
    ['**/*.{png,webp}', ['a/deep/1.webp', 'a/2.png']],
    ['*/deep/1.webp', ['a/deep/1.webp']],
  ])('expands %s', async (pattern, files) => {
    expect((await expandInputs([`${root}/${pattern}`])).sort()).toEqual(at(...files).sort())
  })

  it('a file whose name looks like a glob is that file', async () => {
    expect(await expandInputs(at('b/c[1].jpeg'))).toEqual(at('b/c[1].jpeg'))
  })

  it('leaves a missing image to its own answer', async () => {
    expect(await expandInputs(at('gone.jpg'))).toEqual(at('gone.jpg'))
  })

  it.each([
    ['none', 'EFF_DATA_EMPTY'],
    ['*.gif', 'EFF_DATA_EMPTY'],
    ['gone', 'EFF_DATA_MISSING'],
    ['[z-a]*.jpg', 'EFF_CONFIG_VALUE'],
    ['{a,{b}.jpg', 'EFF_CONFIG_VALUE'],
  ])('%s is %s', async (word, code) => {
    await expect(expandInputs([`${root}/${word}`])).rejects.toMatchObject({ code, message: expect.stringContaining(word) })
  })
})
