/** Training graphs of whole networks, as passes make them for a target and as they are without fusion. */
import { Graph } from '../../ts/graph/graph.js'
import { verify } from '../../ts/graph/verify.js'
import { buildEfficientNet, getModelConfig, type ModelConfig } from '../../ts/nn/index.js'
import { autodiff, eliminateDead, fuseTraining, markOutputs, type Target } from '../../ts/passes/index.js'

export interface NetOptions {
  /** Of the square images, pixels. */
  size: number
  batch?: number
  frozen?: (name: string) => boolean
}

/** Forward, loss, backward; fused for `target` in front of the backward part, or not at all. Dead nodes are there still. */
export function differentiated(config: ModelConfig, target: Target | null, { size, batch = 3, frozen }: NetOptions): Graph {
  const graph = new Graph(config.name)
  const net = buildEfficientNet(graph, config, {
    batch,
    height: size,
    width: size,
    mode: 'train',
    dtype: 'f32',
    dropRate: 0.3,
    dropPathRate: 0.6,
    ...(frozen && { frozen }),
  })
  const labels = graph.input('labels', [batch], 'i32')
  graph.node('softmax_cross_entropy', { logits: net.logits, labels }, { label_smoothing: 0.1 }, { name: 'loss' })
  const ready = markOutputs(target ? fuseTraining(graph, target) : graph, ['loss:loss'])
  autodiff(ready, ready.find('loss:loss'))
  verify(ready)
  return ready
}

export const training = (config: ModelConfig, target: Target | null, options: NetOptions): Graph =>
  eliminateDead(differentiated(config, target, options))

/** The first stages alone, with few blocks: every kind of block at a hundredth of the work. */
export const shortened = (name: string, stages: number): ModelConfig => {
  const config = getModelConfig(name, { numClasses: 7 })
  return { ...config, head: 32, stages: config.stages.slice(0, stages).map((s) => ({ ...s, repeats: Math.min(2, s.repeats) })) }
}
