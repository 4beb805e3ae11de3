import { describe, expect, test } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import { interpret } from '../../ts/graph/interpreter.js'
import { elements, type Node } from '../../ts/graph/types.js'
import { verify } from '../../ts/graph/verify.js'
import { padding } from '../../ts/nn/efficientnet.js'
import { type BuildOptions, buildEfficientNet, DROPOUT_STREAM, getModelConfig, modelParams } from '../../ts/nn/index.js'
import { goldenInput, goldenWeights, pixelsFor } from '../helpers/golden.js'
import { SIZES } from './sizes.js'

function build(name: string, size: number, options: Partial<BuildOptions> = {}) {
  const graph = new Graph(name)
  const all: BuildOptions = { batch: 1, height: size, width: size, mode: 'eval', dtype: 'f32', ...options }
  return { graph, ...buildEfficientNet(graph, getModelConfig(name), all) }
}

/** Multiply-accumulates of a node for one image, from its shapes alone. */
function macsOf(node: Node): number {
  const weights = node.inputs[1]
  const dst = node.outputs[0]
  if (!weights || !dst) return 0
  if (node.op === 'conv2d' || node.op === 'linear') return elements(dst.shape) * elements(weights.shape.slice(1))
  if (node.op === 'depthwise_conv2d') return elements(dst.shape) * weights.shape[0]! * weights.shape[1]!
  return 0
}

describe('every model as a graph', () => {
  test.each(SIZES)('$name at $size', ({ name, size, params, stats, macs }) => {
    for (const full of [name, `tf_${name}`]) {
      const { graph, images, features, logits } = build(full, size)
      const config = getModelConfig(full)
      expect(graph.nodes.reduce((sum, node) => sum + macsOf(node), 0)).toBe(macs)
      const count = (role: string): number =>
        graph.tensors.filter((t) => t.role === role).reduce((s, t) => s + elements(t.shape), 0)
      expect([count('parameter'), count('buffer')]).toEqual([params, stats])
      const made = graph.tensors.filter((t) => t.role === 'parameter' || t.role === 'buffer')
      expect(made.map((t) => [t.name, t.shape, t.role])).toEqual(modelParams(config).map((p) => [p.name, p.shape, p.role]))
      expect([images.shape, features.shape, logits.shape]).toEqual([
        [1, size, size, 3],
        [1, config.head],
        [1, 1000],
      ])
    }
  })

  test.each(['efficientnet_b0', 'tf_efficientnetv2_s', 'efficientnet_lite0'])(
    '%s keeps the rules of graphs in both modes',
    (name) => {
      for (const mode of ['train', 'eval'] as const) {
        for (const dtype of ['f32', 'bf16'] as const) {
          const { graph, features, logits } = build(name, 67, { mode, dtype, batch: 2, width: 95 })
          verify(graph)
          expect([features.dtype, logits.dtype]).toEqual(['f32', 'f32'])
          const images = graph.tensors.filter((t) => t.role === 'activation' && t.shape.length === 4)
          expect(new Set(images.map((t) => t.dtype))).toEqual(new Set([dtype]))
        }
      }
    },
  )
})

describe('padding', () => {
  test.each([
    ['same', 64, 3, 2, [0, 1]],
    ['same', 64, 5, 2, [1, 2]],
    ['same', 67, 3, 2, [1, 1]],
    ['same', 67, 5, 2, [2, 2]],
    ['same', 64, 5, 1, [2, 2]],
    ['same', 1, 5, 2, [2, 2]],
    ['same', 2, 5, 2, [1, 2]],
    ['symmetric', 64, 3, 2, [1, 1]],
    ['symmetric', 67, 5, 1, [2, 2]],
  ] as const)('%s, %d pixels, kernel %d, stride %d', (mode, input, kernel, stride, expected) => {
    expect(padding(mode, input, kernel, stride)).toEqual(expected)
  })
})

describe('training graphs', () => {
  const drops = (graph: Graph): [string, number, number][] =>
    graph.nodes
      .filter((n) => n.op === 'drop_path' || n.op === 'dropout')
      .map((n) => [n.name, n.attrs['drop_rate']!, n.attrs['rng_stream']!])

  test('stochastic depth by block, its stream the block index', () => {
    const found = drops(build('efficientnet_b0', 64, { mode: 'train', dropPathRate: 0.32, dropRate: 0.5 }).graph)
    expect(found[0]).toEqual(['blocks.1.1.drop_path', 0.32 * (2 / 16), 2])
    expect(found.at(-2)).toEqual(['blocks.5.3.drop_path', 0.32 * (14 / 16), 14])
    expect(found.at(-1)).toEqual(['dropout', 0.5, DROPOUT_STREAM])
    expect(found.length).toBe(10)
  })

  test('BN momentum: the config’s unless given', () => {
    const momenta = (options: Partial<BuildOptions>) => {
      const { graph } = build('efficientnet_widese_b0', 64, { mode: 'train', ...options })
      return new Set(graph.nodes.filter((n) => n.op === 'bn_stats').map((n) => n.attrs['momentum']))
    }
    expect(momenta({})).toEqual(new Set([0.01]))
    expect(momenta({ bnMomentum: 0.1 })).toEqual(new Set([0.1]))
  })

  test('streams do not move with the rates', () => {
    const streams = (options: Partial<BuildOptions>): Map<string, number> =>
      new Map(drops(build('efficientnetv2_s', 64, { mode: 'train', ...options }).graph).map(([name, , stream]) => [name, stream]))
    const with0 = streams({ dropRate: 0 })
    for (const [name, stream] of with0) expect(streams({ dropPathRate: 0.5 }).get(name)).toBe(stream)
  })

  test('none in evaluation, none with rates of 0', () => {
    expect(drops(build('efficientnet_b0', 64).graph)).toEqual([])
    expect(drops(build('efficientnet_b0', 64, { mode: 'train', dropRate: 0, dropPathRate: 0 }).graph)).toEqual([])
  })

  test('the recipe of the model unless said', () => {
    const rates = drops(build('efficientnet_b4', 64, { mode: 'train' }).graph).map(([, rate]) => rate)
    expect(rates.at(-1)).toBe(0.4)
    expect(Math.max(...rates.slice(0, -1))).toBeCloseTo((0.2 * 31) / 32, 12)
  })

  test('frozen tensors are not trained; a frozen BN uses and keeps its running statistics', () => {
    const { graph, features, logits } = build('efficientnet_b0', 64, {
      mode: 'train',
      batch: 2,
      dropRate: 0,
      dropPathRate: 0,
      frozen: (name) => !name.startsWith('classifier.'),
    })
    expect(graph.parameters.filter((p) => p.trainable).map((p) => p.name)).toEqual(['classifier.weight', 'classifier.bias'])
    expect(graph.nodes.some((n) => n.op === 'bn_stats')).toBe(false)
    const config = getModelConfig('efficientnet_b0')
    const values = goldenWeights(config).set('images', pixelsFor(config, goldenInput(2, 64, 64)))
    const trained = interpret(graph, { values, keep: (t) => t === features || t === logits || t.role === 'buffer' })
    const evaluation = build('efficientnet_b0', 64, { batch: 2 })
    const evaluated = interpret(evaluation.graph, { values, keep: (t) => t === evaluation.logits || t === evaluation.features })
    expect(trained.get(logits.name)).toEqual(evaluated.get(evaluation.logits.name))
    expect(trained.get(features.name)).toEqual(evaluated.get(evaluation.features.name))
    for (const b of graph.buffers) expect(trained.get(b.name)).toEqual(values.get(b.name))
  })

  test('one frozen BN among others', () => {
    const { graph } = build('efficientnet_b0', 64, { mode: 'train', frozen: (name) => name.startsWith('blocks.0.0.bn1.') })
    expect(graph.nodes.filter((n) => n.op === 'bn_stats').length).toBe(48)
    const apply = graph.nodes.find((n) => n.name === 'blocks.0.0.bn1')!
    expect([apply.attrs['batch_stats'], apply.inputs[1]!.name]).toEqual([0, 'blocks.0.0.bn1.running_mean'])
  })

  test('drop path and dropout change the result, by the step', () => {
    const config = getModelConfig('efficientnet_b0')
    const values = goldenWeights(config).set('images', pixelsFor(config, goldenInput(2, 32, 32)))
    const { graph, logits } = build('efficientnet_b0', 32, { mode: 'train', batch: 2, dropRate: 0.2, dropPathRate: 0.5 })
    const run = (step: number): Float64Array =>
      interpret(graph, { values, scalars: { seed: 5, step }, keep: (t) => t === logits }).get(logits.name)!
    expect(run(1)).toEqual(run(1))
    expect(run(1)).not.toEqual(run(2))
  })
})
