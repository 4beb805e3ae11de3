/** Where a model's parameters and buffers lie in the weights arena: fixed by the model, so that all its plans share it. */
import type { ParamInfo, Shape } from '../graph/types.js'
import { elements } from '../graph/types.js'
import type { ParamDef } from '../nn/index.js'
import { align } from '../passes/plan_memory.js'

export interface WeightSlot {
  /** timm's name. */
  readonly name: string
  /** As stored. */
  readonly shape: Shape
  readonly info: ParamInfo
  readonly role: 'parameter' | 'buffer'
  /** Bytes from the start of the weights arena (and of gradients, moments, EMA). */
  readonly offset: number
  readonly size: number
}

export interface WeightsLayout {
  /** In the order of the model's state dict. */
  readonly slots: readonly WeightSlot[]
  readonly offsets: ReadonlyMap<string, number>
  readonly bytes: number
}

/** Parameters first, then buffers, each 64-byte aligned. */
export function weightsLayout(defs: readonly ParamDef[]): WeightsLayout {
  const offsets = new Map<string, number>()
  let bytes = 0
  for (const role of ['parameter', 'buffer'] as const) {
    for (const def of defs) {
      if (def.role !== role) continue
      offsets.set(def.name, bytes)
      bytes = align(bytes + 4 * elements(def.shape))
    }
  }
  const slots = defs.map((def) => ({ ...def, offset: offsets.get(def.name)!, size: elements(def.shape) }))
  return { slots, offsets, bytes }
}
