import { cpSync, existsSync, readFileSync, rmSync } from 'node:fs'
import path from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { packageRoot } from '../../ts/paths.js'
import { effnet } from './helpers/capture.js'
import { workplace } from './helpers/folders.js'
import { expectMistake, usage } from './helpers/mistake.js'

const w = workplace()
afterAll(() => w.remove())

describe('train --resume', () => {
  it('needs the weights file no more: options and weights come from the run', async () => {
    const data = w.dataset('data')
    const file = w.at('start.safetensors')
    cpSync(path.join(packageRoot(), 'models/pretrained/tf_efficientnet_b0.safetensors'), file)
    const words = (out: string, steps: string): string[] => [
      ...['train', '--data', data, '--model', 'tf_efficientnet_b0', '--weights', file, '--out', w.at(out), '--json'],
      ...['--image-size', '32', '--batch-size', '4', '--epochs', '2', '--max-steps', steps],
    ]
    expect((await effnet(words('whole', '2'))).code).toBe(0)
    expect((await effnet(words('cut', '1'))).code).toBe(0)
    rmSync(file)
    const resumed = await effnet(['train', '--resume', w.at('cut'), '--max-steps', '2', '--json'])
    expect(resumed.code, resumed.stderr).toBe(0)
    expect(resumed.stderr).toMatch(/^model .* weights of the checkpoint$/m)
    // One step further is another option than before; nothing else is.
    const warned = resumed.json().filter((line) => line['event'] === 'warning')
    expect(warned.map((line) => line['code'])).toEqual(['resume-option'])
    expect(warned[0]!['message']).toBe('since the run was interrupted options changed: --max-steps was 1 and is 2')
    const [cut, whole] = ['cut', 'whole'].map((out) => readFileSync(w.at(out, 'checkpoints/last/model.safetensors')))
    expect(cut!.equals(whole!)).toBe(true)
    expect(JSON.parse(readFileSync(w.at('cut', 'status.json'), 'utf8'))).toMatchObject({ state: 'finished', exitCode: 0 })
  })

  it('with other values warns once, of each value that changed, in the words of the command line', async () => {
    const data = w.dataset('other')
    const words = [
      'train',
      '--data',
      data,
      '--model',
      'efficientnet_b0',
      '--image-size',
      '32',
      '--optimizer',
      'adamw',
      '--epochs',
      '2',
    ]
    const run = (...more: string[]) => effnet([...words, '--out', w.at('changed'), '--resume', ...more])
    expect((await run('--batch-size', '4', '--lr', '1e-3', '--max-steps', '1')).code).toBe(0)
    const { code, stderr } = await run('--batch-size', '2', '--lr', '0.5', '--max-steps', '2')
    expect(code, stderr).toBe(0)
    expect(stderr).toBe(
      'warning  since the run was interrupted options changed: --batch-size was 4 and is 2, --lr was 0.001 and is 0.5, --max-steps was 1 and is 2\n',
    )
  })

  it('of a finished run warns of options without effect, and in another folder is an error', async () => {
    const data = w.dataset('finished')
    const words = [
      'train',
      '--data',
      data,
      '--model',
      'efficientnet_b0',
      '--image-size',
      '32',
      '--batch-size',
      '4',
      '--lr',
      '1e-3',
    ]
    expect((await effnet([...words, '--out', w.at('whole-run'), '--epochs', '1'])).code).toBe(0)
    const again = await effnet(['train', '--resume', w.at('whole-run'), '--batch-size', '8'])
    expect(again.code).toBe(0)
    expect(again.stderr).toBe(
      'warning  the run is finished (epoch 1, step 2), nothing was trained; of no effect: --batch-size was 4 and is 8\n' +
        '  Mend: --epochs 2 or more trains on\n',
    )
    expect((await effnet(['train', '--resume', w.at('whole-run')])).stderr).toBe('')
    await expectMistake(
      ['train', '--resume', w.at('whole-run'), '--out', w.at('elsewhere'), '--batch-size', '8'],
      usage(/this run is finished \(epoch 1, step 2\): nothing is left to train in .*elsewhere/, /--epochs 2 or more/),
    )
    expect(existsSync(w.at('elsewhere'))).toBe(false)
    const on = await effnet(['train', '--resume', w.at('whole-run'), '--out', w.at('elsewhere'), '--epochs', '2', '--json'])
    expect(on.code, on.stderr).toBe(0)
    expect(on.json().at(-1)).toMatchObject({ result: { status: 'finished', epoch: 2, out: w.at('elsewhere') } })
  })

  it('of a run that began with --pretrained takes the rest of its options too', async () => {
    const data = w.dataset('bundled')
    const words = [
      'train',
      '--data',
      data,
      '--model',
      'tf_efficientnet_b0',
      '--pretrained',
      '--image-size',
      '32',
      '--batch-size',
      '4',
    ]
    const first = await effnet([...words, '--out', w.at('bundled-run'), '--epochs', '2', '--max-steps', '1'])
    expect(first.code, first.stderr).toBe(0)
    expect(first.stdout).toMatch(
      /tf_efficientnet_b0\.safetensors \(\d+ of \d+ tensors\) · classifier replaced: 1000 -> 2 classes/,
    )
    expect(first.stdout).toMatch(/plan .*adamw lr 0\.001 /)
    const on = await effnet(['train', '--resume', w.at('bundled-run'), '--max-steps', '2'])
    expect(on.code, on.stderr).toBe(0)
    expect(on.stderr).toBe('warning  since the run was interrupted options changed: --max-steps was 1 and is 2\n')
  })
})
