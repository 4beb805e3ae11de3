import { cpSync, readFileSync, rmSync } from 'node:fs'
import path from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { packageRoot } from '../../ts/paths.js'
import { effnet } from './helpers/capture.js'
import { workplace } from './helpers/folders.js'

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
    const [cut, whole] = ['cut', 'whole'].map((out) => readFileSync(w.at(out, 'checkpoints/last/model.safetensors')))
    expect(cut!.equals(whole!)).toBe(true)
    expect(JSON.parse(readFileSync(w.at('cut', 'status.json'), 'utf8'))).toMatchObject({ state: 'finished', exitCode: 0 })
  })
})
