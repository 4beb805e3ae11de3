/**
 * The layers of a network in the order of its state_dict. Parameters, graph, operation counts and foreign names are all made
 * from this one list. Names are timm's.
 */
import type { ModelConfig, StageConfig } from './config.js'

/** Convolution without bias, batch normalisation, and (where `act`) the activation. */
export interface ConvLayer {
  readonly type: 'conv'
  /** What it does in its block. */
  readonly role: 'stem' | 'expand' | 'depthwise' | 'project' | 'head'
  /** Full names, e.g. `blocks.1.0.conv_pw` and `blocks.1.0.bn1`. */
  readonly conv: string
  readonly bn: string
  readonly depthwise: boolean
  readonly kernel: number
  readonly stride: number
  readonly in: number
  readonly out: number
  readonly act: boolean
}

/** Squeeze and excitation over the output of the layer before. */
export interface SeLayer {
  readonly type: 'se'
  readonly name: string
  readonly channels: number
  readonly reduced: number
}

export interface Block {
  /** `blocks.<stage>.<position>`, both from 0. */
  readonly name: string
  readonly stage: number
  readonly position: number
  /** From 0 over the network. */
  readonly index: number
  readonly layers: readonly (ConvLayer | SeLayer)[]
  /** The block's input is added to its output. */
  readonly residual: boolean
  /** Dropped with this rate in training when the config's rates hold: P * index / blocks, residual blocks alone. */
  readonly dropPathRate: number
}

export interface Network {
  readonly stem: ConvLayer
  readonly blocks: readonly Block[]
  readonly head: ConvLayer
  readonly classifier: { readonly name: string; readonly in: number; readonly out: number }
}

const conv = (
  role: ConvLayer['role'],
  [convName, bn]: readonly [string, string],
  shape: { in: number; out: number; kernel?: number; stride?: number },
  act: boolean,
): ConvLayer => ({
  type: 'conv',
  role,
  conv: convName,
  bn,
  depthwise: role === 'depthwise',
  kernel: shape.kernel ?? 1,
  stride: shape.stride ?? 1,
  in: shape.in,
  out: shape.out,
  act,
})

/**
 * timm's `conv_pw` is the projection where there is no expansion, else the expansion; the projection is then `conv_pwl`.
 * A fused block without expansion is one convolution with an activation.
 */
function blockLayers(
  name: string,
  config: ModelConfig,
  stage: StageConfig,
  input: number,
  stride: number,
): (ConvLayer | SeLayer)[] {
  const { kernel, expand, out } = stage
  const mid = input * expand
  const names = (c: string, bn: number): [string, string] => [`${name}.${c}`, `${name}.bn${bn}`]
  const seBase = config.se.rule === 'expanded' ? mid : input
  const se: SeLayer[] = stage.se
    ? [{ type: 'se', name: `${name}.se`, channels: mid, reduced: Math.max(1, Math.floor(seBase * config.se.ratio)) }]
    : []
  if (stage.op === 'fused') {
    if (expand === 1) return [conv('expand', names('conv', 1), { in: input, out, kernel, stride }, true)]
    return [
      conv('expand', names('conv_exp', 1), { in: input, out: mid, kernel, stride }, true),
      ...se,
      conv('project', names('conv_pwl', 2), { in: mid, out }, false),
    ]
  }
  if (expand === 1) {
    return [
      conv('depthwise', names('conv_dw', 1), { in: mid, out: mid, kernel, stride }, true),
      ...se,
      conv('project', names('conv_pw', 2), { in: mid, out }, false),
    ]
  }
  return [
    conv('expand', names('conv_pw', 1), { in: input, out: mid }, true),
    conv('depthwise', names('conv_dw', 2), { in: mid, out: mid, kernel, stride }, true),
    ...se,
    conv('project', names('conv_pwl', 3), { in: mid, out }, false),
  ]
}

export function networkOf(config: ModelConfig): Network {
  const total = config.stages.reduce((sum, stage) => sum + stage.repeats, 0)
  const blocks: Block[] = []
  config.stages.forEach((stage, s) => {
    for (let j = 0; j < stage.repeats; j++) {
      const name = `blocks.${s}.${j}`
      const input = j === 0 ? stage.in : stage.out
      const stride = j === 0 ? stage.stride : 1
      const residual = stride === 1 && input === stage.out
      const index = blocks.length
      blocks.push({
        name,
        stage: s,
        position: j,
        index,
        layers: blockLayers(name, config, stage, input, stride),
        residual,
        dropPathRate: residual ? (config.dropPathRate * index) / total : 0,
      })
    }
  })
  const last = config.stages.at(-1)!.out
  return {
    stem: conv('stem', ['conv_stem', 'bn1'], { in: 3, out: config.stem, kernel: 3, stride: 2 }, true),
    blocks,
    head: conv('head', ['conv_head', 'bn2'], { in: last, out: config.head }, true),
    classifier: { name: 'classifier', in: config.head, out: config.numClasses },
  }
}

/** Every layer but the classifier, in state_dict order. */
export const featureLayers = (net: Network): (ConvLayer | SeLayer)[] => [
  net.stem,
  ...net.blocks.flatMap((b) => b.layers),
  net.head,
]
