/** Shape rules and float64 references of single ops, against values worked out by hand or by another route. */
import { describe, expect, it } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import { interpret } from '../../ts/graph/interpreter.js'
import { OP_TABLE, type OpName } from '../../ts/graph/op_table.js'
import { undefinedOps } from '../../ts/graph/ops/index.js'
import { actCode, type DType, type Shape, type Tensor } from '../../ts/graph/types.js'
import { verify } from '../../ts/graph/verify.js'
import { anyParam, fillBy, maxDifference, uniform } from './values.js'

type Given = Record<string, { shape: Shape; data?: ArrayLike<number>; dtype?: DType }>

/** Outputs of one node by port, given its operands by port. */
function evaluate(
  op: OpName,
  given: Given,
  attrs: Record<string, number>,
  options: { shapes?: Shape[]; dtype?: DType; want?: string[]; updates?: Given; scalars?: object; storage?: 'as-typed' } = {},
): Record<string, Float64Array> {
  const graph = new Graph('one')
  const values = new Map<string, Float64Array>()
  const next = uniform(1)
  const put = (name: string, { shape, data, dtype = 'f32' }: Given[string], role: 'input' | 'buffer'): Tensor => {
    values.set(name, data ? Float64Array.from(data) : fillBy(shape, next))
    return role === 'input' ? graph.input(name, shape, dtype) : graph.buffer(name, shape, anyParam(shape))
  }
  const inputs = Object.fromEntries(Object.entries(given).map(([name, g]) => [name, put(name, g, 'input')]))
  const updates = Object.entries(options.updates ?? {}).map(([name, g]) => put(name, g, 'buffer'))
  const { shapes, dtype, want } = options
  const made = graph.node(op, inputs, attrs, {
    name: 'node',
    updates,
    ...(shapes && { shapes }),
    ...(dtype && { dtype }),
    want: want ?? OP_TABLE[op].outputs.map((p) => p.name),
  })
  verify(graph)
  const result = interpret(graph, { values, scalars: options.scalars ?? {}, storage: options.storage ?? 'float64' })
  const named = [...Object.entries(made), ...updates.map((t) => [t.name, t] as const)]
  return Object.fromEntries(named.map(([port, t]) => [port, result.get(t.name)!]))
}

const NORM = { mean0: 1, mean1: 2, mean2: 3, std0: 1, std1: 1, std2: 1 }
const PAD0 = { stride: 1, pad_t: 0, pad_l: 0, pad_b: 0, pad_r: 0 }

it('every op of the table is defined', () => {
  expect(undefinedOps()).toEqual([])
})

describe('shape rules', () => {
  const graph = new Graph('shapes')
  const input = (shape: Shape, dtype: DType = 'f32') => graph.input('x', shape, dtype)
  const node = (op: OpName, inputs: Record<string, Tensor>, attrs: Record<string, number> = {}, options: object = {}) =>
    graph.node(op, inputs, attrs, { name: 'layer', ...options })

  const IMAGE = [2, 4, 4, 3]
  const END_NORM = { end_mean: [3], end_inv_std: [3] }
  const SRC_NORM = { src_mean: [3], src_inv_std: [3], src_scale: [3], src_shift: [3] }
  /** conv2d_bwd of three channels to five, with more operands of these shapes. */
  const bothGradients = (more: Record<string, Shape>, attrs: Record<string, number> = {}) => {
    const norm = { mean: [5], inv_std: [5], scale: [5], diff_scale: [5], diff_shift: [5] }
    const given = { src: IMAGE, weights: [5, 1, 1, 3], diff_dst: [2, 4, 4, 5], dst: [2, 4, 4, 5], ...norm, ...more }
    const inputs = Object.fromEntries(Object.entries(given).map(([port, shape]) => [port, input(shape)]))
    const none = { act: 0, drop_rate: 0, rng_stream: 0, batch_stats: 1, src_act: 0, end_drop_rate: 0, end_rng_stream: 0 }
    return node('conv2d_bwd', inputs, { ...PAD0, ...none, ...attrs })
  }

  it.each([
    [224, 3, 2, 1, 1, 112],
    [225, 3, 2, 1, 1, 113],
    [224, 3, 2, 0, 1, 112],
    [56, 5, 2, 1, 2, 28],
    [7, 1, 1, 0, 0, 7],
  ])('a window over %d, kernel %d, stride %d, padding %d+%d gives %d', (size, k, stride, begin, end, out) => {
    const attrs = { stride, pad_t: begin, pad_l: begin, pad_b: end, pad_r: end }
    const dense = node('conv2d', { src: input([2, size, size, 4], 'bf16'), weights: input([6, k, k, 4]) }, attrs)['dst']!
    expect([dense.shape, dense.dtype]).toEqual([[2, out, out, 6], 'bf16'])
    const depthwise = node('depthwise_conv2d', { src: input([2, size, size, 4]), weights: input([k, k, 4]) }, attrs)['dst']!
    expect([depthwise.shape, depthwise.dtype]).toEqual([[2, out, out, 4], 'f32'])
  })

  it('small tensors are FP32 whatever the activation type is', () => {
    const src = input([2, 4, 4, 3], 'bf16')
    expect(node('global_avg_pool', { src })['dst']).toMatchObject({ shape: [2, 3], dtype: 'f32' })
    const updates = [graph.buffer('m', [3], anyParam([3])), graph.buffer('v', [3], anyParam([3]))]
    expect(node('bn_stats', { src }, { eps: 1e-3, momentum: 0.1 }, { updates })['mean']).toMatchObject({
      shape: [3],
      dtype: 'f32',
    })
    const weights = node('conv2d_bwd_weights', { src, diff_dst: input([2, 4, 4, 5], 'bf16') }, PAD0, { shapes: [[5, 1, 1, 3]] })
    expect(weights['diff_weights']).toMatchObject({ shape: [5, 1, 1, 3], dtype: 'f32' })
  })

  it.each<[string, () => unknown, RegExp]>([
    [
      'channels',
      () => node('conv2d', { src: input([1, 4, 4, 3]), weights: input([8, 1, 1, 4]) }, PAD0),
      /conv2d "layer": src \[1, 4, 4, 3\] and weights \[8, 1, 1, 4\]/,
    ],
    [
      'depthwise channels',
      () => node('depthwise_conv2d', { src: input([1, 4, 4, 3]), weights: input([3, 3, 4]) }, PAD0),
      /\[1, 4, 4, 3\] and weights \[3, 3, 4\]/,
    ],
    [
      'window',
      () => node('conv2d', { src: input([1, 2, 2, 3]), weights: input([8, 3, 3, 3]) }, PAD0),
      /smaller than the window 3x3/,
    ],
    [
      'backward shape',
      () =>
        node('conv2d_bwd_data', { diff_dst: input([1, 4, 4, 8]), weights: input([8, 1, 1, 3]) }, PAD0, {
          shapes: [[1, 5, 5, 3]],
        }),
      /diff_dst f32\[1, 4, 4, 8\] is not \[1, 5, 5, 8\]/,
    ],
    [
      'no hint',
      () => node('conv2d_bwd_data', { diff_dst: input([1, 4, 4, 8]), weights: input([8, 1, 1, 3]) }, PAD0),
      /shape of diff_src/,
    ],
    ['a part of what ends a block', () => bothGradients({ end_src: IMAGE }), /end_src, end_mean and end_inv_std must be given/],
    ['another end', () => bothGradients({ end_src: [2, 4, 4, 5], ...END_NORM }), /end_src f32\[2, 4, 4, 5\] and src/],
    ['another addend', () => bothGradients({ addend: [2, 4, 4, 5] }), /addend f32\[2, 4, 4, 5\] and src/],
    ['a normalised end', () => bothGradients({ ...SRC_NORM, addend: IMAGE }), /a source that is normalised ends no block/],
    ['a drop of no end', () => bothGradients({}, { end_drop_rate: 0.2 }), /end_drop_rate needs the BN in front of src/],
    [
      'pixels',
      () => node('input_conv2d_bwd_weights', { src: input([1, 4, 4, 3]), diff_dst: input([1, 4, 4, 8]) }, { ...PAD0, ...NORM }),
      /input_conv2d_bwd_weights "layer": src f32\[1, 4, 4, 3\] must be u8/,
    ],
    [
      'type of results',
      () =>
        node(
          'input_conv2d_bias_act',
          { src: input([1, 4, 4, 3], 'u8'), weights: input([8, 1, 1, 3]), bias: input([8]) },
          {
            ...PAD0,
            ...NORM,
            act: 0,
          },
        ),
      /type of dst must be given/,
    ],
    ['sum', () => node('add', { src0: input([1, 4]), src1: input([1, 5]) }), /src0 f32\[1, 4\] and src1 f32\[1, 5\]/],
    ['sum of types', () => node('add', { src0: input([1, 4]), src1: input([1, 4], 'bf16') }), /src1 bf16\[1, 4\]/],
    [
      'gate',
      () => node('channel_scale', { src: input([2, 4, 4, 3]), gate: input([3, 3]) }),
      /gate f32\[3, 3\] must be f32\[2, 3\]/,
    ],
    ['matrix', () => node('linear', { src: input([2, 4]), weights: input([3, 5]) }), /src f32\[2, 4\] and weights f32\[3, 5\]/],
    [
      'labels',
      () => node('softmax_cross_entropy', { logits: input([2, 4]), labels: input([3], 'i32') }, { label_smoothing: 0 }),
      /labels i32\[3\] and logits f32\[2, 4\]/,
    ],
    ['attribute', () => node('activation', { src: input([2]) }, { act: 9 }), /act 9/],
    ['rate', () => node('dropout', { src: input([2]) }, { drop_rate: 1, rng_stream: 0 }), /drop_rate 1/],
    ['missing input', () => node('add', { src0: input([1]) }), /input src1 is missing/],
    ['missing attribute', () => node('activation', { src: input([2]) }), /attribute act/],
    ['unknown attribute', () => node('add', { src0: input([1]), src1: input([1]) }, { act: 1 }), /no attribute act/],
    [
      'missing updates',
      () => node('bn_stats', { src: input([1, 2, 2, 3]) }, { eps: 1, momentum: 1 }),
      /running_mean and running_var/,
    ],
  ])('a wrong %s is named', (_what, make, message) => {
    expect(make).toThrow(message)
    expect(make).toThrow(expect.objectContaining({ code: 'EFF_INTERNAL' }))
  })
})

describe('convolutions', () => {
  /** The definition, index by index. */
  const direct =
    (
      src: (y: number, x: number, i: number) => number,
      w: (o: number, ky: number, kx: number, i: number) => number,
      k: number,
      ic: number,
    ) =>
    (y: number, x: number, o: number): number => {
      let sum = 0
      for (let ky = 0; ky < k; ky++)
        for (let kx = 0; kx < k; kx++) for (let i = 0; i < ic; i++) sum += src(y + ky, x + kx, i) * w(o, ky, kx, i)
      return sum
    }

  it.each([
    [1, 1, 1],
    [2, 0, 1],
    [2, 1, 0],
    [3, 2, 2],
  ])('stride %d, padding %d before and %d after', (stride, begin, end) => {
    const [h, w, ic, oc, k] = [6, 7, 3, 5, 3]
    const next = uniform(8)
    const [src, dense, depthwise] = [fillBy([1, h, w, ic], next), fillBy([oc, k, k, ic], next), fillBy([k, k, ic], next)]
    const attrs = { stride, pad_t: begin, pad_l: begin, pad_b: end, pad_r: end }
    const at = (y: number, x: number, i: number) => {
      const [sy, sx] = [y - begin, x - begin]
      return sy < 0 || sx < 0 || sy >= h || sx >= w ? 0 : src[(sy * w + sx) * ic + i]!
    }
    const [oh, ow] = [h, w].map((size) => Math.floor((size + begin + end - k) / stride) + 1) as [number, number]
    const expected = (channels: number, value: (y: number, x: number, o: number) => number) =>
      Float64Array.from({ length: oh * ow * channels }, (_, j) => {
        const [pixel, o] = [Math.floor(j / channels), j % channels]
        return value(Math.floor(pixel / ow) * stride, (pixel % ow) * stride, o)
      })
    const images = { shape: [1, h, w, ic], data: src }
    const got = evaluate('conv2d', { src: images, weights: { shape: [oc, k, k, ic], data: dense } }, attrs)['dst']!
    const weight = (o: number, ky: number, kx: number, i: number) => dense[((o * k + ky) * k + kx) * ic + i]!
    expect(maxDifference(got, expected(oc, direct(at, weight, k, ic)))).toBeLessThan(1e-14)

    const gotDepthwise = evaluate('depthwise_conv2d', { src: images, weights: { shape: [k, k, ic], data: depthwise } }, attrs)[
      'dst'
    ]!
    const own = (o: number, ky: number, kx: number, i: number) => (i === o ? depthwise[(ky * k + kx) * ic + o]! : 0)
    expect(maxDifference(gotDepthwise, expected(ic, direct(at, own, k, ic)))).toBeLessThan(1e-14)
  })

  const PIXELS = { mean0: 100, mean1: 50, mean2: 0, std0: 7, std1: 7, std2: 64 }
  const pixels = { shape: [1, 2, 2, 3], dtype: 'u8' as const, data: [1, 50, 64, 255, 57, 0, 100, 0, 32, 103, 64, 128] }
  const padded = { stride: 1, pad_t: 1, pad_l: 1, pad_b: 0, pad_r: 0 }

  it('of uint8 images: normalised, rounded to the type of the result, 0 beyond the border', () => {
    const taps = new Map([
      [0, 11],
      [16, 1],
      [32, 1],
    ])
    const weights = { shape: [3, 2, 2, 3], data: Array.from({ length: 36 }, (_, i) => taps.get(i) ?? 0) }
    const updates = { running_mean: { shape: [3] }, running_var: { shape: [3] } }
    const attrs = { ...padded, eps: 1e-3, momentum: 0.1, ...PIXELS }
    const options = { updates, dtype: 'bf16', storage: 'as-typed' } as const
    const got = evaluate('input_conv2d_stats', { src: pixels, weights }, attrs, options)
    // Each result is one value or the border: red of the pixel up and left, green of the one above, blue of that to the left.
    // Red is (1 - 100) / 7, rounded before it is multiplied by 11: else it would be 156.
    const red = -155
    expect([...got['dst']!]).toEqual([0, 0, 0, 0, 0, 1, 0, 0, 0, red, 1, 0.5])
    expect([...got['mean']!].map((v) => Math.fround(v))).toEqual([red / 4, 0.25, 0.375].map((v) => Math.fround(v)))
  })

  it('of uint8 images, with bias and activation, and the gradient of weights', () => {
    const src = pixels.data.map((v, i) => (v - [100, 50, 0][i % 3]!) / [7, 7, 64][i % 3]!)
    const images = { shape: pixels.shape, data: src }
    const random = (shape: Shape) => ({ shape, data: fillBy(shape, uniform(shape.length)) })
    const [weights, bias, diff_dst] = [random([5, 2, 2, 3]), random([5]), random([1, 2, 2, 5])]
    const attrs = { ...padded, act: actCode('silu') }
    const dst = evaluate('input_conv2d_bias_act', { src: pixels, weights, bias }, { ...attrs, ...PIXELS }, { dtype: 'f32' })
    expect(dst).toEqual(evaluate('conv2d_bias_act', { src: images, weights, bias }, attrs))
    const shapes = [[5, 2, 2, 3]]
    const diff = evaluate('input_conv2d_bwd_weights', { src: pixels, diff_dst }, { ...padded, ...PIXELS }, { shapes })
    expect(diff).toEqual(evaluate('conv2d_bwd_weights', { src: images, diff_dst }, padded, { shapes }))
  })

  it('with bias, gate, activation and residual', () => {
    // 1x1: dst = relu6(sum_i src_i gate_i w_i + bias) + residual
    const one = (data: number[]) => ({ shape: [1, 1, 1, data.length], data })
    const got = evaluate(
      'conv2d_bias_act',
      {
        src: one([1, 2]),
        weights: { shape: [2, 1, 1, 2], data: [3, 4, -5, 1] },
        bias: { shape: [2], data: [0.5, 1] },
        gate: { shape: [1, 2], data: [0.5, 0.25] },
        residual: one([10, 20]),
      },
      { ...PAD0, act: actCode('relu6') },
    )
    expect([...got['dst']!]).toEqual([14, 20])
  })

  it('depthwise with pooling', () => {
    const given = {
      src: { shape: [1, 1, 2, 2], data: [1, 2, 3, -4] },
      weights: { shape: [1, 1, 2], data: [2, 1] },
      bias: { shape: [2], data: [1, 1] },
    }
    const got = evaluate('depthwise_conv2d_bias_act', given, { ...PAD0, act: actCode('relu') })
    expect([...got['dst']!]).toEqual([3, 3, 7, 0])
    expect([...got['pooled']!]).toEqual([5, 1.5])
  })
})

describe('batch normalisation', () => {
  const src = { shape: [2, 1, 2, 2], data: [1, 10, 2, 10, 3, 10, 6, 10] }

  it('tracks the unbiased variance with momentum', () => {
    const updates = { running: { shape: [2], data: [1, 0] }, var: { shape: [2], data: [2, 1] } }
    const got = evaluate('bn_stats', { src }, { eps: 0.5, momentum: 0.25 }, { updates })
    expect([...got['running']!]).toEqual([0.75 * 1 + 0.25 * 3, 0.25 * 10])
    // Channel 0: mean 3, biased variance 3.5, unbiased 14/3.
    expect(got['var']![0]).toBeCloseTo(0.75 * 2 + (0.25 * 14) / 3, 14)
    expect([...got['inv_std']!]).toEqual([1 / Math.sqrt(4), 1 / Math.sqrt(0.5)])
    expect(maxDifference(got['mean']!, Float64Array.of(3, 10))).toBe(0)
  })

  it('of a single value keeps the variance finite', () => {
    const updates = { mean: { shape: [1], data: [0] }, var: { shape: [1], data: [1] } }
    const got = evaluate('bn_stats', { src: { shape: [1, 1, 1, 1], data: [5] } }, { eps: 1, momentum: 0.5 }, { updates })
    expect(got['var']![0]).toBe(0.5)
  })

  it('folds into weights and bias', () => {
    const channels = {
      scale: { shape: [2], data: [2, 3] },
      shift: { shape: [2], data: [1, 1] },
      running_mean: { shape: [2], data: [4, 0.5] },
    }
    const given = {
      weights: { shape: [2, 1, 1, 2], data: [1, 2, 3, 4] },
      ...channels,
      running_var: { shape: [2], data: [3.75, 0] },
    }
    const graph = new Graph('fold')
    const values = new Map<string, Float64Array>()
    const inputs = Object.fromEntries(
      Object.entries(given).map(([name, { shape, data }]) => {
        values.set(name, Float64Array.from(data))
        return [name, graph.parameter(name, shape, anyParam(shape))]
      }),
    )
    const out = graph.node('fold_bn', inputs, { eps: 0.25, depthwise: 0 }, { name: 'fold', prepare: true, role: 'prepared' })
    verify(graph)
    const result = interpret(graph, { values })
    // Factors 2 / 2 and 3 / 0.5.
    expect([...result.get(out['folded_weights']!.name)!]).toEqual([1, 2, 18, 24])
    expect([...result.get(out['folded_bias']!.name)!]).toEqual([-3, -2])
  })
})

describe('softmax_cross_entropy', () => {
  const logits = { shape: [3, 4], data: [1, 3, 3, 0, 2, 2, 2, 2, 0, 1, 2, 3] }

  it('ranks, with ties in favour of smaller indices, and leaves out samples without label', () => {
    const ranks = (labels: number[]) => [
      ...evaluate(
        'softmax_cross_entropy',
        { logits, labels: { shape: [3], data: labels, dtype: 'i32' } },
        { label_smoothing: 0 },
      )['rank']!,
    ]
    expect(ranks([2, 3, 0])).toEqual([1, 3, 3])
    expect(ranks([1, 0, -1])).toEqual([0, 0, -1])
  })

  it('is the mean over samples with a label', () => {
    const loss = (labels: number[], label_smoothing: number) =>
      evaluate('softmax_cross_entropy', { logits, labels: { shape: [3], data: labels, dtype: 'i32' } }, { label_smoothing })[
        'loss'
      ]![0]!
    expect(loss([-1, 0, -1], 0)).toBeCloseTo(Math.log(4), 14)
    expect(loss([-1, 0, -1], 0.3)).toBeCloseTo(Math.log(4), 14)
    const third = Math.log(1 + Math.exp(-1) + Math.exp(-2) + Math.exp(-3))
    expect(loss([-1, 0, 3], 0)).toBeCloseTo((Math.log(4) + third) / 2, 14)
    // -log p is third + 0, 1, 2, 3.
    expect(loss([-1, -1, 3], 0.2)).toBeCloseTo(0.8 * third + 0.2 * (third + 1.5), 14)
    expect(loss([-1, -1, -1], 0)).toBe(0)
  })
})

describe('others', () => {
  it('normalises pixels', () => {
    const attrs = { mean0: 1, mean1: 2, mean2: 3, std0: 1, std1: 2, std2: 4 }
    const got = evaluate('input_normalize', { src: { shape: [1, 1, 2, 3], data: [1, 2, 3, 11, 22, 43], dtype: 'u8' } }, attrs)
    expect([...got['dst']!]).toEqual([0, 0, 0, 10, 10, 10])
  })

  it('softmax', () => {
    const got = evaluate('softmax', { logits: { shape: [1, 2], data: [1000, 1000 + Math.log(3)] } }, {})['probs']!
    expect(maxDifference(got, Float64Array.of(0.25, 0.75))).toBeLessThan(1e-12)
  })

  it('drops whole samples, the same ones with gate and residual', () => {
    const drop = { drop_rate: 0.5, rng_stream: 3 }
    const ones = { shape: [16, 1, 1, 2], data: new Float64Array(32).fill(1) }
    const scalars = { seed: 5, step: 8 }
    const plain = evaluate('drop_path', { src: ones }, drop, { scalars })['dst']!
    for (let n = 0; n < 16; n++) expect(plain[2 * n]).toBe(plain[2 * n + 1])
    expect(new Set(plain)).toEqual(new Set([0, 2]))
    const c = (v: number) => ({ shape: [2], data: [v, v] })
    const norm = { src: ones, mean: c(0), inv_std: c(1), scale: c(1), shift: c(0) }
    const given = { ...norm, gate: { shape: [16, 2], data: new Float64Array(32).fill(0.5) }, residual: ones }
    const fused = evaluate('bn_act', given, { ...drop, act: actCode('identity'), batch_stats: 0 }, { scalars })['dst']!
    expect([...fused]).toEqual([...plain.map((v) => 1 + v / 2)])
  })
})
