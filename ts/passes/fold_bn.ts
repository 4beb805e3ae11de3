/** Inference: folds BN with running statistics into convolutions and fuses what follows. */
import type { Graph } from '../graph/graph.js'
import { parted } from '../turns.js'
import { applyPatterns, type Target } from './fuse.js'
import { bnActPattern } from './fuse_patterns/bn_act.js'
import { convBiasActPattern } from './fuse_patterns/conv_bias_act.js'
import { expandDepthwisePattern } from './fuse_patterns/expand_depthwise.js'
import { inputInConvolutions } from './fuse_patterns/input_conv.js'
import { seGatePattern } from './fuse_patterns/se_gate.js'

/**
 * A new graph in which folded weights are made by prepare nodes (role `prepared`), run when weights changed. A BN that cannot be
 * folded (its convolution has other readers) is fused with its activation instead. Expansions whose result is at least
 * `leastWideBytes` an image are then joined with the depthwise convolution behind them; on GPUs the first convolution reads
 * the uint8 images itself.
 */
export const foldBn = parted(function* (graph: Graph, target: Target, leastWideBytes?: number) {
  const folded = yield* applyPatterns.parts(graph, [convBiasActPattern, seGatePattern, bnActPattern], target)
  return yield* applyPatterns.parts(folded, [expandDepthwisePattern(leastWideBytes), inputInConvolutions], target)
})
