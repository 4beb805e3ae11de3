/** The backend without a device: plans and verifies, allocates nothing. What a model would need can be asked on any machine. */
import { binding } from '../binding.js'
import type { Graph } from '../graph/graph.js'
import { type ModelConfig, modelParams } from '../nn/index.js'
import { type EmitOptions, emit } from '../passes/emit.js'
import type { ImageRegion } from '../passes/index.js'
import { planMemory } from '../passes/plan_memory.js'
import { weightsLayout } from './weights_layout.js'

export interface NullPlan {
  ops: number
  tensors: number
  /** Bytes of each arena, by the numbers of `ARENA`. */
  arenaBytes: number[]
  /** SHA-256 of the plan. */
  hash: string
}

/** Compiles a graph of `config` as a session would and runs the native verifier over it. @throws EFF_PLAN_INVALID */
export function planWithoutMemory(
  config: ModelConfig,
  graph: Graph,
  region: ImageRegion | null = null,
  options: EmitOptions = {},
): NullPlan {
  const layout = weightsLayout(modelParams(config))
  const mirrors = graph.nodes.some((n) => n.op.startsWith('optimizer_'))
    ? { grads: true, moment0: true, moment1: true, ema: graph.nodes.some((n) => n.op === 'ema_update' || n.attrs['ema'] === 1) }
    : {}
  const request = { weightOffsets: layout.offsets, weightBytes: layout.bytes, mirrors }
  const plan = emit(graph, planMemory(graph, request, region), options)
  return { ...binding().verifyPlan(plan.bytes), hash: plan.hash }
}
