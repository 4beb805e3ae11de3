/** Fusion: replaces chains of primitive ops by the fused ops of the table, one pattern a file in fuse_patterns/. */
import type { Graph } from '../graph/graph.js'
import type { Node } from '../graph/types.js'
import { parted } from '../turns.js'
import { blockEnd } from './fuse_patterns/block_end.js'
import { bnActPattern } from './fuse_patterns/bn_act.js'
import { convBwd } from './fuse_patterns/conv_bwd.js'
import { convStatsPattern } from './fuse_patterns/conv_stats.js'
import { depthwiseStatsPattern } from './fuse_patterns/depthwise_stats.js'
import { inputInConvolutions } from './fuse_patterns/input_conv.js'
import { type Emission, GraphView, type Pattern, type Target } from './fuse_patterns/pattern.js'
import { seGatePattern } from './fuse_patterns/se_gate.js'
import { depthwiseBehindNorm, sourceNormBackward, sourceNormForward } from './fuse_patterns/source_norm.js'
import { Rewriter } from './rewrite.js'

export type { Target } from './fuse_patterns/pattern.js'

/** A new graph with every match replaced; a node goes to the first pattern that takes it. */
export const applyPatterns = parted(function* (graph: Graph, patterns: readonly Pattern[], target: Target) {
  const view = yield* GraphView.of.parts(graph)
  const usable = patterns.filter((p) => p.applies(target))
  const removed = new Set<Node>()
  const emits = new Map<Node | 'prepare', Emission[]>()
  for (const node of graph.nodes) {
    yield
    for (const pattern of usable) {
      if (!view.isFree(node)) break
      const rewrite = pattern.match(node, view, target)
      if (!rewrite) continue
      view.claim(rewrite.removes)
      for (const each of rewrite.removes) removed.add(each)
      for (const emission of rewrite.emits) emits.set(emission.at, [...(emits.get(emission.at) ?? []), emission])
    }
  }
  const rewriter = yield* Rewriter.of.parts(graph)
  for (const emission of emits.get('prepare') ?? []) {
    emission.run(rewriter)
    yield
  }
  for (const node of graph.nodes) {
    yield
    for (const emission of emits.get(node) ?? []) emission.run(rewriter)
    if (!removed.has(node)) rewriter.copy(node)
  }
  return rewriter.graph
})

/**
 * Fuses a forward graph for training; to be called before `autodiff`, since the fused ops have gradient rules that make the
 * fused backward ops. Tensors of role `output` and the results of fused chains keep their names.
 */
export const fuseTraining = parted((graph: Graph, target: Target) =>
  applyPatterns.parts(graph, [convStatsPattern, depthwiseStatsPattern, bnActPattern, seGatePattern], target),
)

/** Fuses what `autodiff` has made of a graph for training. */
export const fuseBackward = parted(function* (graph: Graph, target: Target) {
  if (target.device === 'cpu') return yield* applyPatterns.parts(graph, [convBwd()], target)
  // Each pattern looks for what the one before has left.
  const joined = yield* applyPatterns.parts(graph, [convBwd('always')], target)
  const backward = yield* applyPatterns.parts(joined, [sourceNormBackward, depthwiseBehindNorm], target)
  const linear = yield* applyPatterns.parts(backward, [depthwiseBehindNorm], target)
  return yield* applyPatterns.parts(linear, [blockEnd, sourceNormForward, inputInConvolutions], target)
})
