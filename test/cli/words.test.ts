/** What people get wrong in words: each mistake gives one message with the mend, the right exit code, and no stack. */

import { describe, expect, it } from 'vitest'
import { userWords } from '../../ts/cli/user_words.js'
import { allSkipped } from '../../ts/train/not_finite.js'
import { expectMistake, type Mistake, usage } from './helpers/mistake.js'

describe('wrong words', () => {
  it.each<[string[], Mistake]>([
    [['trian'], usage(/'trian'/, /effnet train/, 'EFF_CONFIG_KEY')],
    [['toString'], usage(/'toString'/, /train, eval/, 'EFF_CONFIG_KEY')],
    [['train', '--epoch', '3'], usage(/--epoch is not an option/, /--epochs N/, 'EFF_CONFIG_KEY')],
    [
      ['predict', '--data-backend', 'gpu', 'x.jpg'],
      usage(
        /--data-backend is not an option of effnet predict/,
        /train and \S*\s?effnet eval alone decode images on a GPU/,
        'EFF_CONFIG_KEY',
      ),
    ],
    [['predict', '--topk=3', 'x.jpg'], usage(/--topk is not an option/, /--top-k K/, 'EFF_CONFIG_KEY')],
    [['train', 'photos'], usage(/'photos' is one word too many/, /--data/, 'EFF_CONFIG_KEY')],
    [['models', 'shwo', 'x'], usage(/no 'shwo'/, /models show/, 'EFF_CONFIG_KEY')],
    [['train', '--lr', '1,5'], usage(/'1,5'/, /a number above 0/)],
    [['train', '--batch-size', '0'], usage(/--batch-size: '0'/, /from 1 to/)],
    [['train', '--schedule', 'cosin'], usage(/'cosin'/, /--schedule cosine/)],
    [['predict', '--top-k', '0', 'x.jpg'], usage(/--top-k: '0'/, /at least 1/)],
    [['predict', '--precision', 'fp8', 'x.jpg'], usage(/'fp8'/, /bf16-mixed/)],
    [['train', '--data', 'x', '--model'], usage(/--model needs a value/, /--model NAME/)],
    [['train', '--model', 'efficientnet_b0'], usage(/needs --data/, /--data DIR/)],
    [['train', '--data', 'x'], usage(/needs --model/, /models list/)],
    [['eval', '--model', 'efficientnet_b0'], usage(/needs --data/, /--data DIR/)],
    [['predict'], usage(/needs PATH/, /photo\.jpg/)],
    [['models', 'show'], usage(/needs a NAME/, /models list/)],
    [['bench', '--mode', 'data'], usage(/needs --data/, /--data DIR/)],
    [
      ['bench', '--mode', 'data', '--data', 'x', '--device', 'cuda'],
      usage(/CPU's pipeline; --device is none of it/, /leave --device out/),
    ],
    [
      ['bench', '--mode', 'data', '--data', 'x', '--memory-limit', '1GB'],
      usage(/; --memory-limit is none of it/, /leave --memory-limit out/),
    ],
    [
      ['bench', '--mode', 'data', '--data', 'x', '--profile', '--model', 'efficientnet_b0'],
      usage(
        /CPU's pipeline; --model, --profile are none of it/,
        /leave --model, --profile out; --model, --profile are of --mode infer and train/,
      ),
    ],
    [['bench', '--optimizer', 'sgd'], usage(/--mode infer times inference; --optimizer is none of it/, /of --mode train/)],
    [
      ['bench', '--mode', 'train', '--data', 'x', '--workers', '2'],
      usage(/steps of training; --data, --workers are none of it/, /--data, --workers are of --mode data/),
    ],
    [
      ['bench', '--optimizer', 'sgd', '--data', 'x'],
      usage(/--optimizer, --data are none of it/, /--optimizer is of --mode train, --data is of --mode data/),
    ],
    [['bench', '--memory-limit', 'nan'], usage(/--memory-limit: 'nan' is not accepted: no such amount/, /8GiB/)],
    [['train', '--memory-limit', '-1'], usage(/--memory-limit/, /8GiB|--memory-limit X/)],
    [['bench', '--memory-limit', '150%'], usage(/more than all there is/, /8GiB/)],
    [['bench', '--memory-limit', '1048575'], usage(/that is 1048575 bytes, and 1048576 \(1\.0 MiB\) are the least/, /8GiB/)],
    [['bench', '--device', 'cuda:00'], usage(/cuda:00/, /cuda:1/)],
    [['train', '--resume'], usage(/which run/, /--out DIR --resume/)],
    [['models', 'show', 'efficientnet_b9'], usage(/efficientnet_b9/, /efficientnet_b[08]/, 'EFF_MODEL_UNKNOWN')],
    [['models', 'list', 'effcient*'], usage(/'effcient\*'/, /glob|efficientnet/, 'EFF_MODEL_UNKNOWN')],
    [['train', '--data', 'x', '--model', 'efficentnet_b0'], usage(/efficentnet_b0/, /efficientnet_b0/, 'EFF_MODEL_UNKNOWN')],
    [['bench', '--model', 'b0'], usage(/b0/, /models list/, 'EFF_MODEL_UNKNOWN')],
    [['bench', '--device', 'tpu'], usage(/tpu/, /cpu/)],
  ])('%j', expectMistake)

  it('in the environment', async () => {
    await expectMistake(['bench'], usage(/EFFNET_NUM_THREADS: 'all'/, /whole number/), { env: { EFFNET_NUM_THREADS: 'all' } })
  })

  it.each(['train', 'eval', 'predict', 'bench'])('%s on a device that is not here', async (verb) => {
    const rest = verb === 'predict' ? ['x.jpg'] : verb === 'bench' ? [] : ['--data', 'x', '--model', 'efficientnet_b0']
    await expectMistake([verb, '--device', 'cuda:99', ...rest], {
      exit: 69,
      code: 'EFF_BACKEND_MISSING',
      says: /cuda/,
      mend: /cpu/,
    })
  })
})

it('the advice of a run that skipped every update has the words of the command line', () => {
  expect(allSkipped(2, 512)[0]).toMatch(/^all 2 updates so far were left out/)
  expect(userWords(allSkipped(1, 512)[1])).toBe(
    'more steps, each of which lowers the loss scale (512 now), or --precision bf16-mixed',
  )
})
