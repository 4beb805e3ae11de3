import { describe, expect, test } from 'vitest'
import { binding } from '../../ts/binding.js'
import { philoxBlock, philoxU32 } from '../../ts/graph/philox.js'
import { elements } from '../../ts/graph/types.js'
import { type Dialect, getModelConfig } from '../../ts/nn/index.js'
import type { RandomDistribution } from '../../ts/nn/init.js'
import { fillRandom, initParams } from '../../ts/runtime/init.js'

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

/** The definition in native/cpu/fill_random.h, by the scalar Philox and the Math of JavaScript. */
function reference(distribution: RandomDistribution, seed: number, stream: number, element: number): number {
  const step = 2 ** 48
  if (distribution.kind === 'uniform') return (philoxU32(seed, step, stream, element) / 2 ** 31 - 1) * distribution.bound
  const gaussian = (step: number, pair: number, f: (angle: number) => number): number => {
    const word = (n: number): number => philoxU32(seed, step, stream, pair + n)
    return Math.sqrt(-2 * Math.log((word(0) + 0.5) / 2 ** 32)) * f((word(1) / 2 ** 32) * 2 * Math.PI)
  }
  let z = gaussian(step, element - (element % 2), element % 2 === 0 ? Math.cos : Math.sin)
  if (distribution.kind === 'truncated') {
    for (let k = 1; Math.abs(z) > 2; k++) z = gaussian(step + k, 2 * element, Math.cos)
  }
  return z * distribution.std
}

const ulp = (x: number): number => 2 ** (Math.max(Math.floor(Math.log2(Math.abs(x))), -126) - 23)

describe('fillRandom', () => {
  const distributions: RandomDistribution[] = [
    { kind: 'normal', std: 0.02 },
    { kind: 'truncated', std: 0.3 },
    { kind: 'uniform', bound: 1 / Math.sqrt(1000) },
  ]

  test.each(
    distributions.flatMap((d) => [
      [d.kind, d, 0, 0] as const,
      [d.kind, d, 1, 2 ** 32 - 1] as const,
      [d.kind, d, 2 ** 53 - 1, 210] as const,
    ]),
  )('%s: the values of the formula (%o, seed %d, stream %d)', (_, distribution, seed, stream) => {
    const values = new Float32Array(30003)
    fillRandom(values, distribution, { seed, stream })
    let worst = 0
    for (const [i, value] of values.entries()) {
      const expected = reference(distribution, seed, stream, i)
      worst = Math.max(worst, Math.abs(value - expected) / ulp(expected))
    }
    expect(worst).toBeLessThanOrEqual(1)
  })

  test('wrong arguments are named', () => {
    const good = { into: new Float32Array(16), distribution: distributions[0] as unknown, seed: 1, stream: 0, begin: 0, end: 16 }
    const call = (wrong: Partial<Record<keyof typeof good, unknown>>): void => {
      const { into, distribution, seed, stream, begin, end } = { ...good, ...wrong } as typeof good
      binding().fillRandom(into, distribution as RandomDistribution, seed, stream, begin, end)
    }
    const detached = new Float32Array(16)
    structuredClone(detached, { transfer: [detached.buffer] })
    const late = new Float32Array(16)
    const detaching = {
      kind: 'normal',
      get std() {
        structuredClone(late, { transfer: [late.buffer] })
        return 1
      },
    }
    for (const [wrong, named] of [
      [{ into: new Float64Array(16) }, 'Float32Array'],
      [{ into: [1, 2] }, 'Float32Array'],
      [{ into: undefined }, 'Float32Array'],
      [{ into: detached }, 'end'],
      [{ into: late, distribution: detaching }, 'end'],
      [{ distribution: null }, 'distribution'],
      [{ distribution: undefined }, 'distribution'],
      [{ distribution: { kind: 'constant', value: 1 } }, 'kind'],
      [{ distribution: {} }, 'kind'],
      [{ distribution: { kind: 'normal', bound: 1 } }, 'std'],
      [{ distribution: { kind: 'normal', std: -1 } }, 'std'],
      [{ distribution: { kind: 'truncated', std: Number.NaN } }, 'std'],
      [{ distribution: { kind: 'uniform', bound: Number.POSITIVE_INFINITY } }, 'bound'],
      [{ seed: -1 }, 'seed'],
      [{ seed: 2 ** 53 }, 'seed'],
      [{ seed: 0.5 }, 'seed'],
      [{ stream: 2 ** 32 }, 'stream'],
      [{ stream: '1' }, 'stream'],
      [{ begin: 2 }, 'begin'],
      [{ begin: 12, end: 8 }, 'begin'],
      [{ begin: Number.NaN }, 'begin'],
      [{ end: 17 }, 'end'],
      [{ end: 3.5 }, 'end'],
      [{ end: undefined }, 'end'],
    ] as const) {
      expect(() => call(wrong), named).toThrow(
        expect.objectContaining({ code: 'EFF_INVALID_ARGUMENT', message: expect.stringContaining(named) }),
      )
    }
    expect([...good.into]).toEqual(new Array(16).fill(0))
    expect(() => call({})).not.toThrow()
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
