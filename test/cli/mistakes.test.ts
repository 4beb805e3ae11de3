/** What people get wrong with files: each mistake gives one message with the mend, the right exit code, and no stack. */
import { mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createModel } from '../../ts/model.js'
import { effnet } from './helpers/capture.js'
import { photo, type Workplace, workplace } from './helpers/folders.js'
import { expectMistake, type Mistake, usage } from './helpers/mistake.js'

let w: Workplace
const SMALL = ['--model', 'efficientnet_b0', '--image-size', '32', '--epochs', '1']

beforeAll(async () => {
  w = workplace()
  w.dataset('good')
  w.classes('three', ['a', 'b', 'c'], 1)
  w.classes('other/train', ['cat', 'dog'])
  w.classes('other/val', ['cat', 'fox'])
  w.classes('noval/train', ['cat'])
  mkdirSync(w.at('flat'))
  writeFileSync(w.at('flat/photo.jpg'), '')
  mkdirSync(w.at('hollow/train/cat'), { recursive: true })
  mkdirSync(w.at('void'))
  mkdirSync(w.at('olds/checkpoints/last'), { recursive: true })
  writeFileSync(w.at('olds/status.json'), '{}')
  writeFileSync(w.at('text.jpg'), 'not an image')
  writeFileSync(w.at('cut.jpg'), readFileSync(photo()).subarray(0, 400))
  writeFileSync(w.at('noise.safetensors'), Buffer.alloc(200, 0xff))
  const model = await createModel('efficientnet_b0', { numClasses: 2, threads: 1 })
  await model.save(w.at('b0.safetensors'))
  await model.save(w.at('saved'))
  await model.close()
  writeFileSync(w.at('short.safetensors'), readFileSync(w.at('b0.safetensors')).subarray(0, 100_000))
})
afterAll(() => w.remove())

const at = (...names: string[]): string => w.at(...names)
describe('data', () => {
  it.each<[string, string, Mistake]>([
    ['a wrong folder', 'gone', { exit: 66, code: 'EFF_DATA_MISSING', says: /gone/, mend: /train\/ and val\// }],
    ['a folder without classes', 'flat', { exit: 66, code: 'EFF_DATA_EMPTY', says: /no class folders/, mend: /folder/ }],
    ['a class without images', 'hollow', { exit: 66, code: 'EFF_DATA_EMPTY', says: /cat/, mend: /images end in/ }],
    ['other classes in val/', 'other', { exit: 65, code: 'EFF_DATA_LABEL', says: /dog.*fox/s, mend: /same class folders/ }],
  ])('%s', async (_, dir, mistake) => {
    await expectMistake(['train', ...SMALL, '--data', at(dir), '--out', at('runs/never')], mistake)
  })

  it('no val/ to evaluate', async () => {
    const mistake = { exit: 66, code: 'EFF_DATA_MISSING', says: /no val\//, mend: /--val-split/ }
    await expectMistake(['eval', '--data', at('noval'), '--checkpoint', at('saved')], mistake)
  })

  it('another number of classes than the checkpoint has', async () => {
    const mistake = { exit: 65, code: 'EFF_DATA_LABEL', says: /3 classes, the model has 2/, mend: /checkpoint/ }
    await expectMistake(['eval', '--data', at('three'), '--checkpoint', at('saved')], mistake)
  })

  it.each<[string, string, Mistake]>([
    ['a glob that matches nothing', '*.gif', { exit: 66, code: 'EFF_DATA_EMPTY', says: /\*\.gif/, mend: /glob/ }],
    ['a folder without images', 'void', { exit: 66, code: 'EFF_DATA_EMPTY', says: /void/, mend: /image files/ }],
    ['what is not there', 'nothing', { exit: 66, code: 'EFF_DATA_MISSING', says: /nothing/, mend: /path/ }],
  ])('%s', async (_, word, mistake) => {
    await expectMistake(['predict', '--checkpoint', at('saved'), at(word)], mistake)
  })

  it('unreadable images have their own answer, the others are predicted', async () => {
    const words = [at('text.jpg'), photo(), at('cut.jpg'), at('gone.jpg'), photo('gray.jpg')]
    const argv = ['predict', '--checkpoint', at('saved'), '--threads', '1', '--image-size', '32']
    const { code, json, stderr } = await effnet([...argv, '--json', ...words])
    expect(code).toBe(65)
    const lines = json()
    expect(lines.map((l) => l['path'])).toEqual(words)
    expect(lines.map((l) => 'error' in l)).toEqual([true, false, true, true, false])
    expect(lines[0]).toMatchObject({ error: { code: 'EFF_DATA_DECODE', message: expect.any(String) } })
    expect(lines[3]).toMatchObject({ error: { code: 'EFF_DATA_MISSING' } })
    expect(stderr).toContain('3 of 5')
    expect((await effnet([...argv, ...words])).code).toBe(65)
  })
})

describe('weights and checkpoints', () => {
  const predict = (...words: string[]) => ['predict', ...words, photo()]

  it.each<[string, () => string[], Mistake]>([
    ['both sources', () => ['--checkpoint', at('saved'), '--weights', 'x'], usage(/both/, /--checkpoint DIR alone/)],
    ['weights of no model', () => ['--weights', at('b0.safetensors')], usage(/--weights needs --model/, /--model NAME/)],
    [
      'a model without weights',
      () => ['--model', 'efficientnet_b1'],
      { exit: 66, code: 'EFF_WEIGHTS_MISSING', says: /efficientnet_b1/, mend: /--weights/ },
    ],
    [
      'a missing file',
      () => ['--model', 'efficientnet_b0', '--weights', at('gone.safetensors')],
      { exit: 66, code: 'EFF_WEIGHTS_MISSING', says: /gone\.safetensors/, mend: /./ },
    ],
    [
      'noise',
      () => ['--model', 'efficientnet_b0', '--weights', at('noise.safetensors')],
      { exit: 65, code: 'EFF_WEIGHTS_CORRUPT', says: /noise\.safetensors/, mend: /./ },
    ],
    [
      'a truncated file',
      () => ['--model', 'efficientnet_b0', '--weights', at('short.safetensors')],
      { exit: 65, code: 'EFF_WEIGHTS_CORRUPT', says: /short\.safetensors/, mend: /./ },
    ],
    [
      'weights of another model',
      () => ['--model', 'efficientnet_b1', '--weights', at('b0.safetensors')],
      { exit: 65, code: 'EFF_WEIGHTS_SHAPE', says: /b0\.safetensors/, mend: /./ },
    ],
    [
      'another class count',
      () => ['--model', 'efficientnet_b0', '--weights', at('b0.safetensors'), '--num-classes', '7'],
      { exit: 65, code: 'EFF_WEIGHTS_SHAPE', says: /2 classes, --num-classes asks for 7/, mend: /leave --num-classes out/ },
    ],
    [
      'another class count than the checkpoint',
      () => ['--checkpoint', at('saved'), '--num-classes', '7'],
      { exit: 65, code: 'EFF_WEIGHTS_SHAPE', says: /2 classes/, mend: /leave --num-classes out/ },
    ],
    ['no checkpoint', () => ['--checkpoint', at('void')], { exit: 66, code: 'EFF_CKPT_MISSING', says: /void/, mend: /./ }],
  ])('%s', async (_, words, mistake) => {
    await expectMistake(predict(...words()), mistake)
  })

  it('a checkpoint that was damaged', async () => {
    const model = await createModel('efficientnet_b0', { numClasses: 2, threads: 1 })
    await model.save(at('damaged'))
    await model.close()
    truncateSync(at('damaged/model.safetensors'), 1000)
    const { code, stderr } = await effnet(predict('--checkpoint', at('damaged')))
    expect(stderr).toMatch(/^EFF_(CKPT_CORRUPT|CKPT_MISSING|WEIGHTS_CORRUPT) {2}.*damaged/)
    expect([65, 66]).toContain(code)
  })
})

describe('runs', () => {
  it('a folder that holds a run', async () => {
    const mistake = { exit: 73, code: 'EFF_RUN_EXISTS', says: /olds/, mend: /--resume/ }
    await expectMistake(['train', ...SMALL, '--data', at('good'), '--out', at('olds')], mistake)
  })

  it('a file in the place of the folder', async () => {
    const mistake = { exit: 73, code: 'EFF_RUN_EXISTS', says: /text\.jpg/, mend: /folder/ }
    await expectMistake(['train', ...SMALL, '--data', at('good'), '--out', at('text.jpg')], mistake)
  })

  it('a run to resume that is not there', async () => {
    const mistake = { exit: 66, code: 'EFF_CKPT_MISSING', says: /gone/, mend: /--resume/ }
    await expectMistake(['train', ...SMALL, '--data', at('good'), '--resume', at('gone')], mistake)
  })
})
