/** Writes an EfficientNet classifier into a graph, in primitive ops; fusion is the passes' work. */
import { EffnetError } from '../errors.js'
import type { Graph } from '../graph/graph.js'
import { type Activation, actCode, type Tensor } from '../graph/types.js'
import { type Parts, parted } from '../turns.js'
import { type Block, type ConvLayer, networkOf, type SeLayer } from './blocks.js'
import { type ModelConfig, type Padding, pixelNorm } from './config.js'
import { modelParams, type ParamDef } from './params.js'

export interface BuildOptions {
  batch: number
  height: number
  width: number
  /** `train` normalises with batch statistics and drops; `eval` with running statistics. */
  mode: 'train' | 'eval'
  /** Of activations [N,H,W,C]; pooled and smaller tensors are FP32. */
  dtype: 'f32' | 'bf16' | 'f16'
  /** Train mode: dropout before the classifier and stochastic depth of the last block; the config's unless given. */
  dropRate?: number
  dropPathRate?: number
  /** Train mode: of the running statistics; the config's unless given. */
  bnMomentum?: number
  /** Parameters that are not trained. A BN whose scale is frozen uses and keeps its running statistics. */
  frozen?: (name: string) => boolean
}

export interface BuiltNetwork {
  /** Input `images`: u8 [N, H, W, 3]. */
  images: Tensor
  /** Pooled head activations before dropout: f32 [N, head]. */
  features: Tensor
  /** f32 [N, classes]. */
  logits: Tensor
}

/** Philox streams. Stochastic depth uses the block's index (below 1000), so streams do not move when options change. */
export const DROPOUT_STREAM = 4096

/** Padding of one spatial dimension: [begin, end]. */
export function padding(mode: Padding, input: number, kernel: number, stride: number): [begin: number, end: number] {
  if (mode === 'symmetric') return [(kernel - 1) / 2, (kernel - 1) / 2]
  const total = Math.max((Math.ceil(input / stride) - 1) * stride + kernel - input, 0)
  const begin = Math.floor(total / 2)
  return [begin, total - begin]
}

class Writer {
  private readonly defs: Map<string, ParamDef>

  constructor(
    readonly graph: Graph,
    readonly config: ModelConfig,
    readonly options: BuildOptions,
    params: readonly ParamDef[],
  ) {
    this.defs = new Map(params.map((p) => [p.name, p]))
  }

  get train(): boolean {
    return this.options.mode === 'train'
  }

  frozen(name: string): boolean {
    return this.options.frozen?.(name) ?? false
  }

  param(name: string): Tensor {
    const def = this.defs.get(name)
    if (!def) throw new EffnetError('EFF_INTERNAL', `${this.config.name} has no parameter ${name}`)
    if (def.role === 'buffer') return this.graph.buffer(name, def.shape, def.info)
    return this.graph.parameter(name, def.shape, def.info, !this.frozen(name))
  }

  act(src: Tensor, act: Activation, name: string): Tensor {
    return this.graph.node('activation', { src }, { act: actCode(act) }, { name })['dst']!
  }

  convBnAct(src: Tensor, layer: ConvLayer): Tensor {
    const [, h, w] = src.shape as [number, number, number, number]
    const { kernel, stride } = layer
    const [pad_t, pad_b] = padding(this.config.padding, h, kernel, stride)
    const [pad_l, pad_r] = padding(this.config.padding, w, kernel, stride)
    const weights = this.param(`${layer.conv}.weight`)
    const op = layer.depthwise ? 'depthwise_conv2d' : 'conv2d'
    const y = this.graph.node(op, { src, weights }, { stride, pad_t, pad_l, pad_b, pad_r }, { name: layer.conv })['dst']!
    const z = this.batchNorm(y, layer.bn)
    return layer.act ? this.act(z, this.config.act, `${layer.bn}.act`) : z
  }

  batchNorm(src: Tensor, name: string): Tensor {
    const { bnEps: eps, bnMomentum: momentum } = this.config
    const scale = this.param(`${name}.weight`)
    const shift = this.param(`${name}.bias`)
    const running_mean = this.param(`${name}.running_mean`)
    const running_var = this.param(`${name}.running_var`)
    const batch = this.train && !this.frozen(scale.name)
    const stats = batch
      ? this.graph.node(
          'bn_stats',
          { src },
          { eps, momentum },
          { name: `${name}.stats`, updates: [running_mean, running_var], want: ['mean', 'inv_std'] },
        )
      : {
          mean: running_mean,
          inv_std: this.graph.node('bn_inv_std', { var: running_var }, { eps }, { name: `${name}.inv_std` })['inv_std']!,
        }
    const inputs = { src, mean: stats['mean']!, inv_std: stats['inv_std']!, scale, shift }
    return this.graph.node('bn_apply', inputs, { batch_stats: batch ? 1 : 0 }, { name })['dst']!
  }

  linear(src: Tensor, name: string): Tensor {
    const weights = this.param(`${name}.weight`)
    const bias = this.param(`${name}.bias`)
    return this.graph.node('linear', { src, weights, bias }, {}, { name })['dst']!
  }

  pool(src: Tensor, name: string): Tensor {
    return this.graph.node('global_avg_pool', { src }, {}, { name })['dst']!
  }

  squeezeExcite(src: Tensor, { name }: SeLayer): Tensor {
    const hidden = this.linear(this.pool(src, `${name}.pool`), `${name}.conv_reduce`)
    const logits = this.linear(this.act(hidden, this.config.act, `${name}.act`), `${name}.conv_expand`)
    const gate = this.act(logits, 'sigmoid', `${name}.gate`)
    return this.graph.node('channel_scale', { src, gate }, {}, { name })['dst']!
  }

  block(src: Tensor, block: Block): Tensor {
    let x = src
    for (const layer of block.layers) x = layer.type === 'conv' ? this.convBnAct(x, layer) : this.squeezeExcite(x, layer)
    if (!block.residual) return x
    if (this.train && block.dropPathRate > 0) {
      const attrs = { drop_rate: block.dropPathRate, rng_stream: block.index }
      x = this.graph.node('drop_path', { src: x }, attrs, { name: `${block.name}.drop_path` })['dst']!
    }
    return this.graph.node('add', { src0: x, src1: src }, {}, { name: `${block.name}.add` })['dst']!
  }
}

/** Adds the network to `graph`; parameters have timm's names and come in state_dict order. Cost is linear in layers. */
export const buildEfficientNet = parted(function* (
  graph: Graph,
  config: ModelConfig,
  options: BuildOptions,
): Parts<BuiltNetwork> {
  const { batch, height, width, dtype } = options
  const dropRate = options.dropRate ?? config.dropRate
  const { dropPathRate = config.dropPathRate, bnMomentum = config.bnMomentum } = options
  const used = { ...config, dropPathRate, bnMomentum }
  const writer = new Writer(graph, used, options, modelParams(config))
  yield
  const net = networkOf(used)
  yield

  const images = graph.input('images', [batch, height, width, 3], 'u8')
  const { mean, std } = pixelNorm(config.preprocessing)
  const constants = { mean0: mean[0]!, mean1: mean[1]!, mean2: mean[2]!, std0: std[0]!, std1: std[1]!, std2: std[2]! }
  let x = graph.node('input_normalize', { src: images }, constants, { name: 'normalize', dtype })['dst']!
  x = writer.convBnAct(x, net.stem)
  for (const block of net.blocks) {
    x = writer.block(x, block)
    yield
  }
  x = writer.convBnAct(x, net.head)
  const features = writer.pool(x, 'global_pool')
  let pooled = features
  if (writer.train && dropRate > 0) {
    const attrs = { drop_rate: dropRate, rng_stream: DROPOUT_STREAM }
    pooled = graph.node('dropout', { src: features }, attrs, { name: 'dropout' })['dst']!
  }
  return { images, features, logits: writer.linear(pooled, net.classifier.name) }
})
