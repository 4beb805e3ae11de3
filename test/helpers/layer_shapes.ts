/**
 * Every shape of a layer that the models have, from the graphs that training and inference on a GPU run: what
 * native/tests/cuda_shapes_test.cc reads. A line an op:
 *
 *   TYPE OP ATTR=VALUE,... INPUT=PLACE:TYPE:DIMS,... OUTPUT=... UPDATE=...
 *
 * PLACE is w for what lies among the weights, a elsewhere; "-" for an operand that is not there, "." for none at all.
 */

import type { Graph } from '../../ts/graph/graph.js'
import { OP_TABLE } from '../../ts/graph/op_table.js'
import type { Node, Tensor } from '../../ts/graph/types.js'
import { getModelConfig } from '../../ts/nn/index.js'
import { evalProgram, trainProgram } from '../../ts/runtime/programs.js'
import { detectorGraph } from './detector.js'
import { withStoredInput } from './stored_input.js'

const BATCH = 2
/** The last one is EfficientDet-D0's backbone. */
const MODELS = [
  ['efficientnet_b0', 224],
  ['efficientnet_b4', 380],
  ['efficientnetv2_s', 300],
  ['efficientnet_b0', 512],
] as const
/** What D0 adds: channels of the backbone, numbers a pixel, pixels of a side of its levels. */
const LEVELS = [
  [40, 810, 64],
  [112, 36, 32],
  [320, 810, 16],
  [64, 36, 8],
  [64, 810, 4],
] as const
/** Whose references the program has; the rest is small and has one shape or two. */
const OPS = new Set(
  [
    'conv2d conv2d_stats conv2d_bias_act conv2d_bwd conv2d_bwd_data conv2d_bwd_weights',
    'depthwise_conv2d depthwise_conv2d_stats depthwise_conv2d_bias_act depthwise_conv2d_bwd',
    'bn_act bn_act_pool bn_act_bwd_reduce bn_act_bwd_apply bn_bwd_apply',
  ].flatMap((line) => line.split(' ')),
)

const place = (t: Tensor): string => (t.role === 'parameter' || t.role === 'buffer' || t.role === 'prepared' ? 'w' : 'a')
const list = (names: readonly string[], tensors: readonly (Tensor | null | undefined)[]): string =>
  names
    .map((name, i) => {
      const t = tensors[i]
      return t ? `${name}=${place(t)}:${t.dtype}:${t.shape.join('x')}` : `${name}=-`
    })
    .join(',') || '.'

function lineOf(node: Node): string {
  const { attrs, inputs, outputs, updates } = OP_TABLE[node.op]
  const named = (ports: readonly { name: string }[]): string[] => ports.map(({ name }) => name)
  return [
    node.op,
    attrs.map((name) => `${name}=${node.attrs[name]}`).join(',') || '.',
    list(named(inputs), node.inputs),
    list(named(outputs), node.outputs),
    list(named(updates), node.updates),
  ].join(' ')
}

/** `side`: of all images, instead of the models' own. */
export function shapeLines(side?: number): string[] {
  const lines = new Map<string, string>()
  for (const dtype of ['f32', 'bf16', 'f16'] as const) {
    const add = (graph: Graph): void => {
      for (const node of graph.nodes) {
        if (!OPS.has(node.op)) continue
        const line = `${dtype} ${lineOf(node)}`
        // The rate and stream of what is dropped tell layers apart that are the same to a kernel.
        lines.set(line.replace(/drop_rate=0\.\d+/g, 'drop').replace(/rng_stream=\d+/g, ''), line)
      }
    }
    const target = { device: 'cuda' } as const
    for (const [name, size] of MODELS) {
      const [config, common] = [getModelConfig(name), { batchSize: BATCH, imageSize: side ?? size, dtype, target }]
      const rates = { labelSmoothing: 0.1, dropRate: 0.2, dropPathRate: 0.2 }
      const train = trainProgram(config, { ...common, ...rates, optimizer: { name: 'sgd' }, gradNorm: true, ema: false })
      // The first convolution as of a stored tensor: that of pixels gives its bits (native/tests/cuda_input_conv_test.cc).
      for (const graph of [train, evalProgram(config, common).graph]) add(withStoredInput(graph, dtype))
    }
    for (const [channels, outputs, size] of LEVELS)
      add(detectorGraph({ dtype, channels, width: 64, outputs, size: side === undefined ? [size, size] : [3, 4] }))
  }
  return [...lines.values()]
}

/**
 * Of each op in each type about so many, evenly over the models from the first line on; `from`: from another one on, so that several
 * samples have different shapes.
 */
export function sample(lines: readonly string[], each: number, from = 0): string[] {
  const byOp = new Map<string, string[]>()
  for (const line of lines) {
    const op = line.split(' ', 2).join(' ')
    byOp.set(op, [...(byOp.get(op) ?? []), line])
  }
  return [...byOp.values()].flatMap((of) => {
    const step = Math.ceil(of.length / each)
    return of.filter((_, i) => i % step === from % step)
  })
}
