/** Parameters and buffers of a network: names, shapes, layouts; and its size in parameters and multiply-accumulates. */
import { elements, type ParamInfo, type ParamKind, type ParamLayout, type Shape } from '../graph/types.js'
import { type ConvLayer, featureLayers, networkOf, type SeLayer } from './blocks.js'
import type { ModelConfig } from './config.js'
import { type ConfigOverrides, getModelConfig } from './registry.js'

export interface ParamDef {
  /** timm's name, e.g. `blocks.0.0.conv_dw.weight`. */
  readonly name: string
  /** As stored: OHWI, HWC, matrix or vector. */
  readonly shape: Shape
  readonly info: ParamInfo
  readonly role: 'parameter' | 'buffer'
}

const stored = (layout: ParamLayout, t: Shape): Shape => {
  if (layout === 'ohwi') return [t[0]!, t[2]!, t[3]!, t[1]!]
  if (layout === 'hwc') return [t[2]!, t[3]!, t[0]!]
  if (layout === 'matrix') return [t[0]!, t[1]!]
  return t
}

function def(name: string, kind: ParamKind, layout: ParamLayout, torchShape: Shape): ParamDef {
  const role = kind === 'bn_mean' || kind === 'bn_var' ? 'buffer' : 'parameter'
  return { name, shape: stored(layout, torchShape), info: { kind, layout, torchShape }, role }
}

function convParams(layer: ConvLayer): ParamDef[] {
  const { conv, bn, kernel: k, in: input, out } = layer
  return [
    layer.depthwise
      ? def(`${conv}.weight`, 'depthwise', 'hwc', [out, 1, k, k])
      : def(`${conv}.weight`, 'conv', 'ohwi', [out, input, k, k]),
    def(`${bn}.weight`, 'bn_scale', 'vector', [out]),
    def(`${bn}.bias`, 'bn_shift', 'vector', [out]),
    def(`${bn}.running_mean`, 'bn_mean', 'vector', [out]),
    def(`${bn}.running_var`, 'bn_var', 'vector', [out]),
  ]
}

function seParams({ name, channels, reduced }: SeLayer): ParamDef[] {
  return [
    def(`${name}.conv_reduce.weight`, 'se_weights', 'matrix', [reduced, channels, 1, 1]),
    def(`${name}.conv_reduce.bias`, 'se_bias', 'vector', [reduced]),
    def(`${name}.conv_expand.weight`, 'se_weights', 'matrix', [channels, reduced, 1, 1]),
    def(`${name}.conv_expand.bias`, 'se_bias', 'vector', [channels]),
  ]
}

const known = new WeakMap<ModelConfig, readonly ParamDef[]>()

/** Ordered as timm's state_dict, without `num_batches_tracked`. One list for each configuration object. */
export function modelParams(config: ModelConfig): readonly ParamDef[] {
  let params = known.get(config)
  if (!params) {
    params = listParams(config)
    known.set(config, params)
  }
  return params
}

function listParams(config: ModelConfig): ParamDef[] {
  const net = networkOf(config)
  const { name, in: width, out } = net.classifier
  return [
    ...featureLayers(net).flatMap((layer) => (layer.type === 'conv' ? convParams(layer) : seParams(layer))),
    def(`${name}.weight`, 'linear_weights', 'matrix', [out, width]),
    def(`${name}.bias`, 'linear_bias', 'vector', [out]),
  ]
}

/**
 * Multiply-accumulates of one image: convolutions, squeeze-and-excitation and classifier; normalisation, activations and
 * pooling are not counted, as is usual where papers say "FLOPs".
 */
export function countMacs(config: ModelConfig, height: number, width: number): number {
  const net = networkOf(config)
  let [h, w, macs] = [height, width, 0]
  for (const layer of featureLayers(net)) {
    if (layer.type === 'se') {
      macs += 2 * layer.channels * layer.reduced
      continue
    }
    h = Math.ceil(h / layer.stride)
    w = Math.ceil(w / layer.stride)
    macs += h * w * layer.out * (layer.depthwise ? 1 : layer.in) * layer.kernel ** 2
  }
  return macs + net.classifier.in * net.classifier.out
}

export interface ModelInfo {
  readonly name: string
  /** Trainable elements. */
  readonly params: number
  /** Elements of running means and variances. */
  readonly bufferElements: number
  readonly numClasses: number
  readonly imageSize: number
  readonly evalSize: number
  /** Of one image of `imageSize` (or of the size asked for). */
  readonly macs: number
  /** 1e9 multiply-accumulates, which papers and torchvision print as GFLOPs. */
  readonly gflops: number
}

/** Size of a model; `imageSize` is the one that `macs` refers to. Throws as `getModelConfig`. */
export function modelInfo(model: string | ModelConfig, overrides: ConfigOverrides = {}): ModelInfo {
  const config = typeof model === 'string' ? getModelConfig(model, overrides) : model
  const count = { parameter: 0, buffer: 0 }
  for (const p of modelParams(config)) count[p.role] += elements(p.shape)
  const macs = countMacs(config, config.imageSize, config.imageSize)
  return {
    name: config.name,
    params: count.parameter,
    bufferElements: count.buffer,
    numClasses: config.numClasses,
    imageSize: config.imageSize,
    evalSize: config.evalSize,
    macs,
    gflops: macs / 1e9,
  }
}
