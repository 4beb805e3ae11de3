/** The batches that make up one update. */
import type { StepResult } from '../runtime/session.js'

export interface UpdatePart {
  result: StepResult
  stepMs: number
  waitMs: number
}

/** Of the batches of an update; the norm is that of their mean gradient. */
export function mean(parts: readonly UpdatePart[]): UpdatePart {
  const last = parts.at(-1)!
  if (parts.length === 1) return last
  const sum = (of: (part: UpdatePart) => number): number => parts.reduce((total, part) => total + of(part), 0)
  const loss = sum((part) => part.result.loss) / parts.length
  const ranks = Int32Array.from(parts.flatMap((part) => [...part.result.ranks]))
  return { ...last, result: { ...last.result, loss, ranks }, stepMs: sum((p) => p.stepMs), waitMs: sum((p) => p.waitMs) }
}
