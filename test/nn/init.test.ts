import { describe, expect, test } from 'vitest'
import { philoxBlock, philoxU32 } from '../../ts/graph/philox.js'
import { elements } from '../../ts/graph/types.js'
import { type Dialect, getModelConfig, initParams } from '../../ts/nn/index.js'
import { fillRandom } from '../../ts/nn/init.js'

async function draw(name: string, options: { dialect?: Dialect; seed?: number; numClasses?: number; newHead?: boolean } = {}) {
  const { seed = 1, newHead = false, ...overrides } = options
  const values = new Map<string, Float32Array>()
  await initParams(getModelConfig(name, overrides), seed, (p, v) => void values.set(p.name, v), { newHead })
  return (name: string): Float32Array => values.get(name)!
}
const std = (v: Float32Array): number => Math.sqrt(v.reduce((s, x) => s + x * x, 0) / v.length)
const maxAbs = (v: Float32Array): number => v.reduce((m, x) => Math.max(m, Math.abs(x)), 0)
/** Relative deviation of a sample's standard deviation, five sigma. */
const near = (v: Float32Array, expected: number): void =>
  expect(Math.abs(std(v) / expected - 1)).toBeLessThan(5 / Math.sqrt(2 * v.length))

/** The published algorithm in big integers: counter and key as words, least significant first. */
function philoxReference(counter: bigint[], key: bigint[]): number[] {
  const mask = 0xffffffffn
  let [c0, c1, c2, c3] = counter as [bigint, bigint, bigint, bigint]
  let [k0, k1] = key as [bigint, bigint]
  for (let round = 0; round < 10; round++) {
    const p0 = 0xd2511f53n * c0
    const p1 = 0xcd9e8d57n * c2
    ;[c0, c1, c2, c3] = [(p1 >> 32n) ^ c1 ^ k0, p1 & mask, (p0 >> 32n) ^ c3 ^ k1, p0 & mask]
    k0 = (k0 + 0x9e3779b9n) & mask
    k1 = (k1 + 0xbb67ae85n) & mask
  }
  return [c0, c1, c2, c3].map(Number)
}

describe('Philox', () => {
  test('known answers of the Random123 distribution', () => {
    const hex = (words: number[]): string => words.map((w) => w.toString(16)).join(' ')
    const words = new Uint32Array(4)
    philoxBlock(0, 0, 0, 0, words)
    expect(hex([...words])).toBe('6627e8d5 e169c58d bc57ac4c 9b00dbd8')
    expect(hex(philoxReference([0x243f6a88n, 0x85a308d3n, 0x13198a2en, 0x03707344n], [0xa4093822n, 0x299f31d0n]))).toBe(
      'd16cfe09 94fdcceb 5001e420 24126ea1',
    )
  })

  test.each([
    [0, 0, 0, 1],
    [1, 2, 3, 4],
    [2 ** 53 - 1, 2 ** 53 - 1, 2 ** 32 - 1, 2 ** 32 - 1],
    [0x1f31d0a4093822, 2 ** 48 + 5, 4096, 0x243f6a88],
  ])('seed %d, step %d, stream %d, block %d', (seed, step, stream, block) => {
    const split = (v: number): bigint[] => [BigInt(v) & 0xffffffffn, BigInt(v) >> 32n]
    const words = new Uint32Array(4)
    philoxBlock(seed, step, stream, block, words)
    expect([...words]).toEqual(philoxReference([BigInt(block), BigInt(stream), ...split(step)], split(seed)))
    expect([0, 1, 2, 3].map((i) => philoxU32(seed, step, stream, 4 * block + i))).toEqual([...words])
  })
})

describe('initialisation', () => {
  test('timm: normal by fan out, depthwise per group, uniform classifier', async () => {
    const v = await draw('efficientnet_b0')
    near(v('conv_stem.weight'), Math.sqrt(2 / (9 * 32)))
    near(v('blocks.6.0.conv_dw.weight'), Math.sqrt(2 / 9))
    near(v('blocks.1.0.conv_pw.weight'), Math.sqrt(2 / 96))
    near(v('blocks.6.0.se.conv_reduce.weight'), Math.sqrt(2 / 48))
    near(v('classifier.weight'), 1 / Math.sqrt(3000))
    expect(maxAbs(v('classifier.weight'))).toBeLessThanOrEqual(Math.fround(1 / Math.sqrt(1000)))
    for (const zero of ['classifier.bias', 'blocks.6.0.se.conv_expand.bias', 'bn1.bias', 'bn1.running_mean']) {
      expect(maxAbs(v(zero))).toBe(0)
    }
    for (const one of ['bn1.weight', 'bn2.running_var']) expect(new Set(v(one))).toEqual(new Set([1]))
  })

  test('torchvision counts all channels of a depthwise convolution', async () => {
    const v = await draw('efficientnet_b0', { dialect: 'torchvision' })
    near(v('blocks.6.0.conv_dw.weight'), Math.sqrt(2 / (9 * 1152)))
  })

  test('NVIDIA PyTorch: fan in; torch defaults where there is a bias', async () => {
    const v = await draw('efficientnet_b0', { dialect: 'nvidia-pytorch' })
    near(v('blocks.6.0.conv_dw.weight'), Math.sqrt(2 / 9))
    near(v('conv_stem.weight'), Math.sqrt(2 / 27))
    near(v('classifier.weight'), 1 / Math.sqrt(3 * 1280))
    expect(maxAbs(v('blocks.6.0.se.conv_reduce.bias'))).toBeLessThanOrEqual(1 / Math.sqrt(1152))
    expect(maxAbs(v('blocks.6.0.se.conv_expand.bias'))).toBeLessThanOrEqual(1 / Math.sqrt(48))
    expect(maxAbs(v('blocks.6.0.se.conv_expand.bias'))).toBeGreaterThan(0.9 / Math.sqrt(48))
  })

  test('NVIDIA TensorFlow: truncated, with the deviation restored', async () => {
    const v = await draw('efficientnet_b0', { dialect: 'nvidia-tf2' })
    const w = v('conv_head.weight')
    near(w, Math.sqrt(2 / 1280))
    const cut = (2 * Math.sqrt(2 / 1280)) / 0.87962566103423978
    expect(maxAbs(w)).toBeLessThanOrEqual(cut)
    expect(maxAbs(w)).toBeGreaterThan(0.999 * cut)
  })

  test('a normal sample has the moments and tails of one', () => {
    const v = new Float32Array(400000)
    fillRandom(v, { kind: 'normal', std: 1 }, { seed: 3, stream: 0 })
    const moment = (k: number): number => v.reduce((s, x) => s + x ** k, 0) / v.length
    expect(Math.abs(moment(1))).toBeLessThan(5 / Math.sqrt(v.length))
    expect(Math.abs(moment(3))).toBeLessThan((5 * Math.sqrt(15)) / Math.sqrt(v.length))
    expect(Math.abs(moment(4) - 3)).toBeLessThan((5 * Math.sqrt(96)) / Math.sqrt(v.length))
    expect(v.filter((x) => Math.abs(x) > 3).length / v.length).toBeCloseTo(0.0027, 3)
  })

  test('depends on the seed alone, and not on chunks or on what is left out', async () => {
    const [a, b, c] = await Promise.all([draw('efficientnet_b0'), draw('efficientnet_b0'), draw('efficientnet_b0', { seed: 2 })])
    const name = 'blocks.5.1.conv_pw.weight'
    expect(Buffer.from(a(name).buffer).equals(Buffer.from(b(name).buffer))).toBe(true)
    expect(Buffer.from(a(name).buffer).equals(Buffer.from(c(name).buffer))).toBe(false)
    expect(a('blocks.5.1.conv_pw.weight').slice(0, 8)).not.toEqual(a('blocks.5.2.conv_pw.weight').slice(0, 8))
    const only: Float32Array[] = []
    await initParams(getModelConfig('efficientnet_b0'), 1, (_, v) => void only.push(v), { only: (n) => n === name })
    expect(only).toEqual([a(name)])
  })

  test('a new head is small', async () => {
    const v = await draw('efficientnet_b0', { numClasses: 10, newHead: true })
    near(v('classifier.weight'), 0.01)
    expect([v('classifier.weight').length, maxAbs(v('classifier.bias'))]).toEqual([12800, 0])
  })

  test('stops at an abort', async () => {
    const signal = AbortSignal.abort()
    await expect(initParams(getModelConfig('efficientnet_b0'), 1, () => {}, { signal })).rejects.toMatchObject({
      code: 'EFF_ABORTED',
    })
  })

  test('every parameter is finite and of its shape', async () => {
    const config = getModelConfig('efficientnet_lite0')
    await initParams(config, 9, (p, v) => {
      expect(v.length).toBe(elements(p.shape))
      expect(v.every(Number.isFinite)).toBe(true)
    })
  })
})
