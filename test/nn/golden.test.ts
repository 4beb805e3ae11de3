/** Networks against numbers computed in float64 with timm, torchvision and NVIDIA's PyTorch trainer, from hashed weights. */
import { beforeAll, describe, expect, test } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import { interpret } from '../../ts/graph/interpreter.js'
import { buildEfficientNet, type ConfigOverrides, getModelConfig, modelParams } from '../../ts/nn/index.js'
import { autodiff } from '../../ts/passes/index.js'
import { goldenInput, goldenWeights, hashFill, pixelsFor, toTorch } from '../helpers/golden.js'

/** The figures are given to 8 decimals. */
const TOLERANCE = 1e-6
const close = (actual: number, expected: number, scale = 1): void =>
  expect(Math.abs(actual - expected), `${actual} instead of ${expected}`).toBeLessThanOrEqual(TOLERANCE * Math.max(1, scale))

const norm = (v: Float64Array): number => Math.sqrt(v.reduce((s, x) => s + x * x, 0))

test('the hash', () => {
  const round = (v: Float64Array): number[] => [...v].map((x) => Number(x.toFixed(11)))
  expect(round(hashFill(0, 3))).toEqual([0.3315301775, -0.77853730321, 0.17801551055])
  expect(round(hashFill(7, 2))).toEqual([-0.36684595933, 0.27378331497])
})

type EvalRow = [
  model: string,
  overrides: ConfigOverrides,
  h: number,
  w: number,
  first: number[],
  sum: number,
  l2: number,
  argmax: number,
]
const EVAL: EvalRow[] = [
  ['efficientnet_b0', {}, 64, 64, [0.05306781, 0.11659232, 0.02929742, -0.18867237], -0.4734327, 2.94323383, 193],
  ['efficientnet_b0', {}, 67, 95, [0.0562016, 0.11722267, 0.03200076, -0.19335279], 0.03022574, 2.95077196, 193],
  ['tf_efficientnet_b0', {}, 64, 64, [0.05282337, 0.11606823, 0.02924406, -0.18887935], -0.4856894, 2.94101815, 193],
  ['tf_efficientnet_b0', {}, 67, 95, [0.05557824, 0.11712509, 0.03210981, -0.19336654], 0.03107251, 2.94929725, 193],
  [
    'efficientnet_b0',
    { dialect: 'nvidia-pytorch' },
    64,
    64,
    [0.05308811, 0.11656094, 0.02930919, -0.18858918],
    -0.47545571,
    2.94202517,
    193,
  ],
  ['efficientnet_widese_b0', {}, 64, 64, [0.05481559, 0.11697607, 0.03012906, -0.18955262], -0.46773496, 2.94344759, 193],
  ['efficientnet_widese_b0', {}, 67, 95, [0.05789163, 0.11779547, 0.03297862, -0.19437952], 0.04632399, 2.95095594, 193],
  ['tf_efficientnetv2_s', {}, 64, 64, [0.14174336, -0.21622586, 0.07603468, -0.33314906], 8.4258331, 8.71550154, 365],
  ['tf_efficientnetv2_s', {}, 67, 95, [0.14837849, -0.15217541, 0.05107197, -0.31020865], 10.35633948, 9.16455019, 365],
  [
    'efficientnetv2_s',
    { dialect: 'torchvision' },
    64,
    64,
    [0.11716805, -0.1649449, 0.10123065, -0.28652722],
    9.50198255,
    8.68982523,
    365,
  ],
  ['efficientnet_lite0', {}, 64, 64, [-0.18415765, 0.21607858, 0.2185623, -0.03411496], -3.64599951, 6.99103799, 537],
  ['efficientnet_lite0', {}, 67, 95, [-0.26075155, 0.32316335, 0.26554495, 0.07814272], -8.60297163, 9.85857538, 537],
]

describe('evaluation logits', () => {
  test.each(EVAL)('%s %o at %dx%d', (model, overrides, height, width, first, sum, l2, argmax) => {
    const config = getModelConfig(model, overrides)
    const graph = new Graph(model)
    const net = buildEfficientNet(graph, config, { batch: 1, height, width, mode: 'eval', dtype: 'f32' })
    const values = goldenWeights(config).set('images', pixelsFor(config, goldenInput(1, height, width)))
    const logits = interpret(graph, { values, keep: (t) => t === net.logits }).get(net.logits.name)!
    first.forEach((expected, i) => {
      close(logits[i]!, expected)
    })
    close(
      logits.reduce((a, b) => a + b),
      sum,
    )
    close(norm(logits), l2)
    expect(logits.indexOf(Math.max(...logits))).toBe(argmax)
  })
})

interface StepRow {
  model: string
  loss: number
  all: number
  stem: number[]
  stemNorm: number
  bn1: [number, number]
  classifierBias: number[]
  classifierNorm: number
  reduce: [number, number]
  depthwise: [number, number]
  mean: number[]
  variance: number[]
  headVariance: number[]
}
const STEP: StepRow[] = [
  {
    model: 'efficientnet_b0',
    loss: 6.6236272437,
    all: 41.05841878,
    stem: [3.29338937e-1, -1.60114728e-1, -1.74548105e-1],
    stemNorm: 9.90311596,
    bn1: [1.06102549e-1, -1.38633235e-1],
    classifierBias: [-0.224092807, -0.224310918, -0.22252555],
    classifierNorm: 5.50885397,
    reduce: [0.547074889, 0.652756835],
    depthwise: [5.25078219, 0.44764584],
    mean: [0.02685416, -0.01917667],
    variance: [1.20164081, 1.07539013],
    headVariance: [0.96303549, 1.20800973],
  },
  {
    model: 'tf_efficientnet_b0',
    loss: 6.9471909376,
    all: 46.58192759,
    stem: [2.13615119e-1, 1.03264058, -1.96104587e-1],
    stemNorm: 11.1158631,
    bn1: [-2.3847738e-4, -7.70642052e-2],
    classifierBias: [-0.223998674, -0.224319202, -0.222772546],
    classifierNorm: 5.44213076,
    reduce: [0.701672676, 0.679122849],
    depthwise: [5.67367658, 0.444969822],
    mean: [0.02679209, -0.01913623],
    variance: [1.20164419, 1.07547121],
    headVariance: [0.94751439, 1.22365172],
  },
  {
    model: 'tf_efficientnetv2_s',
    loss: 7.0413156494,
    all: 122.76516383,
    stem: [4.33706731e-1, -2.29154962e-1, 1.0979129],
    stemNorm: 15.767584,
    bn1: [5.44326433e-1, 4.26739385e-1],
    classifierBias: [-0.224058719, -0.224199828, -0.224024587],
    classifierNorm: 5.4001365,
    reduce: [1.81984495, 0.16509546],
    depthwise: [4.22563843, 0.111454312],
    mean: [0.02679209, -0.01913623],
    variance: [1.20164419, 1.07547121],
    headVariance: [1.03199305, 1.20895422],
  },
]

describe.each(STEP)('a training step of $model', (row) => {
  const config = getModelConfig(row.model, { bnMomentum: 0.01 })
  const params = modelParams(config)
  let after: Map<string, Float64Array>
  const grad = (name: string): Float64Array => after.get(`grad:${name}`)!
  const named = (suffix: string): string[] => params.map((p) => p.name).filter((name) => name.endsWith(suffix))

  beforeAll(() => {
    const graph = new Graph(row.model)
    const net = buildEfficientNet(graph, config, {
      batch: 4,
      height: 64,
      width: 64,
      mode: 'train',
      dtype: 'f32',
      dropRate: 0,
      dropPathRate: 0,
    })
    const labels = graph.input('labels', [4], 'i32')
    const attrs = { label_smoothing: 0.1 }
    const { loss } = graph.node('softmax_cross_entropy', { logits: net.logits, labels }, attrs, { name: 'loss' })
    autodiff(graph, loss!)
    const values = goldenWeights(config)
      .set('images', pixelsFor(config, goldenInput(4, 64, 64)))
      .set('labels', Float64Array.of(0, 1, 2, 3))
    after = interpret(graph, { values, keep: (t) => t === loss || t.role === 'gradient' || t.role === 'buffer' })
  })

  test('loss', () => close(after.get('loss:loss')![0]!, row.loss))

  test('gradients', () => {
    let squares = 0
    for (const p of params) if (p.role === 'parameter') squares += norm(grad(p.name)) ** 2
    close(Math.sqrt(squares), row.all, row.all)
    const stem = toTorch(params[0]!, grad('conv_stem.weight'))
    row.stem.forEach((expected, i) => {
      close(stem[i]!, expected)
    })
    close(norm(stem), row.stemNorm, row.stemNorm)
    close(grad('bn1.weight')[0]!, row.bn1[0])
    close(grad('bn1.bias')[0]!, row.bn1[1])
    row.classifierBias.forEach((expected, i) => {
      close(grad('classifier.bias')[i]!, expected)
    })
    close(norm(grad('classifier.weight')), row.classifierNorm, row.classifierNorm)
    for (const [suffix, [first, last]] of [
      ['se.conv_reduce.weight', row.reduce],
      ['conv_dw.weight', row.depthwise],
    ] as const) {
      const names = named(suffix)
      close(norm(grad(names[0]!)), first, first)
      close(norm(grad(names.at(-1)!)), last, last)
    }
  })

  test('running statistics', () => {
    row.mean.forEach((expected, i) => {
      close(after.get('bn1.running_mean')![i]!, expected)
    })
    row.variance.forEach((expected, i) => {
      close(after.get('bn1.running_var')![i]!, expected)
    })
    row.headVariance.forEach((expected, i) => {
      close(after.get('bn2.running_var')![i]!, expected)
    })
  })
})
