import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, expect, it } from 'vitest'
import { expandInputs } from '../../ts/cli/inputs.js'
import { imageFolder } from '../../ts/index.js'

const dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-links-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))

it('links that lead back are entered once, pipes are no images, links to images are', async () => {
  const source = 'models/demo/val/Forest'
  const photo = path.resolve(source, readdirSync(source)[0]!)
  for (const name of ['a', 'b']) {
    mkdirSync(path.join(dir, name))
    copyFileSync(photo, path.join(dir, name, '1.jpg'))
    symlinkSync(photo, path.join(dir, name, '2.jpg'))
    symlinkSync('.', path.join(dir, name, 'loop'))
    symlinkSync('..', path.join(dir, name, 'up'))
    execFileSync('mkfifo', [path.join(dir, name, 'pipe.jpg')])
  }
  const { train } = await imageFolder(dir, { valSplit: 0.5 })
  expect(train!.classes).toEqual(['a', 'b'])
  const inputs = await expandInputs([path.join(dir, 'a')])
  expect(inputs.filter((f) => f.endsWith('1.jpg'))).toHaveLength(1)
  expect(train!.length).toBe(2)
  expect(inputs.every((f) => f.startsWith(path.join(dir, 'a/')))).toBe(true)
  // A folder elsewhere is followed.
  symlinkSync('../b', path.join(dir, 'a', 'other'))
  expect((await expandInputs([path.join(dir, 'a')])).filter((f) => f.endsWith('/other/1.jpg'))).toHaveLength(1)
})
