/** What comes with the project: B0's weights and the demo images. */
import { readdirSync, readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, test } from 'vitest'
import { getModelConfig, modelParams } from '../../ts/nn/index.js'
import { packageRoot } from '../../ts/paths.js'
import { matchWeights, openSafetensors, type TensorEntry } from '../../ts/weights/index.js'
import { half } from '../helpers/tensors.js'

const data = process.env['EFFNET_TEST_DATA']
const weights = path.join(packageRoot(), 'models/pretrained/tf_efficientnet_b0.safetensors')
const config = getModelConfig('tf_efficientnet_b0')

describe('B0', () => {
  test('fits its model; matrices are fp16, the rest fp32', async () => {
    const file = await openSafetensors(weights)
    const match = matchWeights(file, config, { offsetOf: () => 0 })
    modelParams(config).forEach((p, i) => {
      expect(match.transfers[i]!.dtype).toBe(p.info.torchShape.length > 1 ? 'F16' : 'F32')
    })
    expect(statSync(weights).size).toBeLessThan(11_000_000)
  })

  test.skipIf(!data)('is its source, rounded to the nearest fp16 (EFFNET_TEST_DATA)', async () => {
    const source = path.join(data!, 'weights/tf_efficientnet_b0.tfhub-v1.safetensors')
    const [ours, theirs] = [await openSafetensors(weights), await openSafetensors(source)]
    const [a, b] = [readFileSync(weights), readFileSync(source)]
    const at = (bytes: Buffer, start: number, t: TensorEntry): Buffer => bytes.subarray(start + t.begin, start + t.end)
    let wrong = 0
    for (const t of ours.tensors.values()) {
      const [x, y] = [at(a, ours.dataStart, t), at(b, theirs.dataStart, theirs.tensors.get(t.name)!)]
      if (t.dtype === 'F32') {
        expect(x.equals(y)).toBe(true)
        continue
      }
      for (let i = 0; 2 * i < x.length; i++) {
        const [bits, value] = [x.readUInt16LE(2 * i), y.readFloatLE(4 * i)]
        const error = Math.abs(half(bits) - value)
        // Neither neighbour may be nearer; of two equally near, the even one is right.
        for (const next of [bits - 1, bits + 1]) {
          const other = Math.abs(half(next) - value)
          if ((next ^ bits) < 0x8000 && (other < error || (other === error && bits % 2 === 1))) wrong++
        }
      }
    }
    expect(wrong).toBe(0)
  })
})

test('the demo images: ten classes, equal counts, 3 MB at most, nothing twice', () => {
  const root = path.join(packageRoot(), 'models/demo')
  let bytes = 0
  const seen = new Set<string>()
  for (const [split, each] of [
    ['train', 60],
    ['val', 25],
  ] as const) {
    const classes = readdirSync(path.join(root, split))
    expect(classes.length).toBe(10)
    for (const label of classes) {
      const names = readdirSync(path.join(root, split, label))
      expect(names.length).toBe(each)
      for (const name of names) {
        expect(seen.has(name)).toBe(false)
        seen.add(name)
        const file = readFileSync(path.join(root, split, label, name))
        expect(file.readUInt16BE(0)).toBe(0xffd8)
        bytes += file.length
      }
    }
  }
  expect(bytes).toBeLessThanOrEqual(3_000_000)
})
