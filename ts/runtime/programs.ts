/** From a model to plans: which passes run, in which order, for a training step and for evaluation. */
import { Graph } from '../graph/graph.js'
import type { Tensor } from '../graph/types.js'
import { buildEfficientNet, type ModelConfig } from '../nn/index.js'
import {
  appendOptimizer,
  autodiff,
  eliminateDead,
  foldBn,
  fuseBackward,
  fuseTraining,
  gateInConvolution,
  type ImageRegion,
  imageRegion,
  markOutputs,
  type OptimizerSpec,
  type RecomputePolicy,
  recompute,
  type Target,
} from '../passes/index.js'
import { type Parts, parted } from '../turns.js'

export interface TrainProgramOptions {
  batchSize: number
  /** Side of the square images, pixels. */
  imageSize: number
  dtype: 'f32' | 'bf16' | 'f16'
  optimizer: Omit<OptimizerSpec, 'gradNorm' | 'ema'>
  labelSmoothing: number
  dropRate: number
  dropPathRate: number
  /** Of BN's running statistics; default the model's. */
  bnMomentum?: number
  /** Whether the norm of the gradients is taken: an output, by which the update clips them where the scalar `clip_norm` is above 0. */
  gradNorm: boolean
  ema: boolean
  /** Parameters that are not trained. */
  frozen?: ((name: string) => boolean) | undefined
  /**
   * Default on CPUs `cheap`: for B0 at 224 px 0.53 of the activations of `none` and 3 % of the speed (x86-64, fp32, batch 32). On
   * GPUs `none`: there traffic is what a step takes its time for, and fused training keeps little.
   */
  recompute?: RecomputePolicy
  target: Target
  /** false leaves every op primitive: the twin that fused graphs are tested against. */
  fuse?: boolean
}

export interface EvalProgramOptions {
  batchSize: number
  imageSize: number
  dtype: 'f32' | 'bf16' | 'f16'
  target: Target
  fuse?: boolean
}

/** Names of the outputs in the plans below. */
export const OUTPUTS = { loss: 'loss:loss', rank: 'loss:rank', gradNorm: 'grad_norm' } as const

function withLoss(graph: Graph, batch: number, logits: Tensor, labelSmoothing: number): Tensor {
  const labels = graph.input('labels', [batch], 'i32')
  return graph.node('softmax_cross_entropy', { logits, labels }, { label_smoothing: labelSmoothing }, { name: 'loss' })['loss']!
}

/** Forward, backward, update: one step. Inputs `images` u8 [N,S,S,3] and `labels` i32 [N]. */
export const trainProgram = parted(function* (config: ModelConfig, o: TrainProgramOptions): Parts<Graph> {
  let graph = new Graph(`${config.name} train ${o.batchSize}x${o.imageSize}`)
  const net = yield* buildEfficientNet.parts(graph, config, {
    batch: o.batchSize,
    height: o.imageSize,
    width: o.imageSize,
    mode: 'train',
    dtype: o.dtype,
    dropRate: o.dropRate,
    dropPathRate: o.dropPathRate,
    ...(o.bnMomentum !== undefined && { bnMomentum: o.bnMomentum }),
    ...(o.frozen && { frozen: o.frozen }),
  })
  withLoss(graph, o.batchSize, net.logits, o.labelSmoothing)
  if (o.fuse ?? true) graph = yield* fuseTraining.parts(graph, o.target)
  yield* autodiff.parts(graph, graph.find(OUTPUTS.loss))
  if (o.fuse ?? true) graph = yield* fuseBackward.parts(graph, o.target)
  yield* appendOptimizer.parts(graph, { ...o.optimizer, gradNorm: o.gradNorm, ema: o.ema })
  yield
  graph = yield* markOutputs.parts(graph, [OUTPUTS.loss, OUTPUTS.rank, ...(o.gradNorm ? [OUTPUTS.gradNorm] : [])])
  graph = yield* eliminateDead.parts(graph)
  graph = yield* recompute.parts(graph, o.recompute ?? (o.target.device === 'cpu' ? 'cheap' : 'none'))
  return (o.fuse ?? true) ? yield* gateInConvolution.parts(graph) : graph
})

export interface EvalProgram {
  graph: Graph
  /** What runs image by image; null: nothing. */
  region: ImageRegion | null
  logits: string
  features: string
}

/** Forward with running statistics folded into the weights. Labels of -1 are not counted. */
export const evalProgram = parted(function* (config: ModelConfig, o: EvalProgramOptions): Parts<EvalProgram> {
  let graph = new Graph(`${config.name} eval ${o.batchSize}x${o.imageSize}`)
  const net = yield* buildEfficientNet.parts(graph, config, {
    batch: o.batchSize,
    height: o.imageSize,
    width: o.imageSize,
    mode: 'eval',
    dtype: o.dtype,
  })
  withLoss(graph, o.batchSize, net.logits, 0)
  const [logits, features] = [net.logits.name, net.features.name]
  if (o.fuse ?? true) graph = yield* foldBn.parts(graph, o.target)
  graph = yield* markOutputs.parts(graph, [OUTPUTS.loss, OUTPUTS.rank, logits, features])
  graph = yield* eliminateDead.parts(graph)
  // A GPU takes the batch whole.
  return { graph, region: o.target.device === 'cpu' ? imageRegion(graph) : null, logits, features }
})
