/** What people get wrong: each mistake gives one message with the mend, the right exit code and no stack, and changes nothing. */
import { cpSync, rmSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { diskMistakes, folderHash, mistakes, mounts, prepareMistakes, wrongWith } from '../../scripts/lib/mistakes.mjs'
import { effnet } from './helpers/capture.js'
import { PHOTOS, photo, workplace } from './helpers/folders.js'
import { expectMistake, type Mistake, usage } from './helpers/mistake.js'

const w = workplace()
const { at } = w
const { tmpfs, release } = mounts(w.root)
/** May be made by a command that fails later. */
const OUTPUTS = ['never', 'small', 'fixed']
const before = { cwd: process.cwd(), hash: '' }
const clear = (): void => {
  for (const dir of ['never', 'small/run']) rmSync(at(dir), { recursive: true, force: true })
}

beforeAll(async () => {
  await prepareMistakes(
    w.root,
    PHOTOS.map((name) => photo(name)),
    async (words) => {
      const { code, stderr } = await effnet(['train', ...words, '--threads', '1'])
      expect(stderr).toBe('')
      expect(code).toBe(0)
    },
  )
  before.hash = folderHash(w.root, OUTPUTS)
})
afterAll(() => {
  release()
  w.remove()
})

describe('a mistake is one message with its mend', () => {
  it.each([...mistakes(at), ...diskMistakes(at, tmpfs)].map((row) => [row.name, row] as const))('%s', async (_, row) => {
    // Under --json the answers of `predict` replace its text; elsewhere both are there.
    const perImage = row.argv[0] === 'predict'
    if (row.cwd !== undefined) process.chdir(row.cwd)
    const run = await effnet(perImage ? row.argv : [...row.argv, '--json'])
    process.chdir(before.cwd)
    clear()
    expect(wrongWith(row, run.code, run.stderr), run.stderr).toBeUndefined()
    if (!perImage) expect(run.json().at(-1)).toMatchObject({ error: { code: row.code, exit_code: row.exit } })
  })

  it('and leaves everything as it was', () => {
    expect(folderHash(w.root, OUTPUTS)).toBe(before.hash)
  })
})

describe('a table that could not fail would be worth nothing', () => {
  const row = { name: '', argv: [], exit: 66, code: 'EFF_DATA_MISSING', says: /gone/, mend: /check/ }
  const good = 'EFF_DATA_MISSING  gone: no such folder\n  Mend: check the path\n'

  it.each([
    ['as it should be', 66, good, undefined],
    ['another exit code', 1, good, /exit code 1/],
    ['two messages', 66, `${good}${good}`, /2 messages/],
    ['another code', 66, good.replace('MISSING', 'EMPTY'), /EFF_DATA_EMPTY/],
    ['no mend', 66, 'EFF_DATA_MISSING  gone\n', /mend/],
    ['a stack', 66, `${good}    at x (y.js:1:1)\n`, /stack/],
    ['words of the library', 66, good.replace('the path', 'maxBad'), /maxBad/],
  ])('%s', (_, code, text, wrong) => {
    const found = wrongWith(row, code, text)
    if (wrong === undefined) expect(found).toBeUndefined()
    else expect(found).toMatch(wrong)
  })
})

it('unreadable images have their own answer, the others are predicted', async () => {
  const words = [at('text.jpg'), photo(), at('old.bmp'), at('gone.jpg'), photo('gray.jpg')]
  const argv = ['predict', '--checkpoint', at('run'), '--threads', '1', '--image-size', '32']
  const { code, json, stderr } = await effnet([...argv, '--json', ...words])
  expect(code).toBe(65)
  const lines = json()
  expect(lines.map((l) => l['path'])).toEqual(words)
  expect(lines.map((l) => 'error' in l)).toEqual([true, false, true, true, false])
  expect(lines[0]).toMatchObject({ error: { code: 'EFF_DATA_DECODE', message: expect.any(String) } })
  expect(lines[3]).toMatchObject({ error: { code: 'EFF_DATA_MISSING' } })
  expect(stderr).toContain('3 of 5')
  const human = await effnet([...argv, ...words])
  expect(human.code).toBe(65)
  // A mend for each kind of failure.
  expect(human.stderr.match(/Mend:/g)).toHaveLength(2)
})

it('names with control characters do not reach the terminal as they are', async () => {
  const name = at('odd\n\u001b[31mred.jpg')
  cpSync(photo(), name)
  const argv = ['predict', '--checkpoint', at('run'), '--threads', '1', '--image-size', '32', name, at('gone\u001bc.jpg')]
  const { stdout, stderr } = await effnet(argv)
  rmSync(name)
  expect(stdout).toContain('odd\\n\\u001b[31mred.jpg\n')
  expect(stderr).toContain('gone\\u001bc.jpg')
  expect((await effnet(['predict', at('gone\u001bc')])).stderr).toContain('gone\\u001bc')
  expect(stdout + stderr).not.toContain('\u001b')
})

describe('weights', () => {
  it.each<[string, () => string[], Mistake]>([
    ['both sources', () => ['--checkpoint', at('run'), '--weights', 'x'], usage(/both/, /--checkpoint DIR alone/)],
    ['weights of no model', () => ['--weights', at('b0.safetensors')], usage(/--weights needs --model/, /--model NAME/)],
    [
      'a model without weights',
      () => ['--model', 'efficientnet_b1'],
      { exit: 66, code: 'EFF_WEIGHTS_MISSING', says: /efficientnet_b1/, mend: /--weights/ },
    ],
  ])('%s', async (_, words, mistake) => {
    await expectMistake(['predict', ...words(), photo()], mistake)
  })
})
