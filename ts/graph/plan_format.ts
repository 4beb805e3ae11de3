/** Constants of the plan that both sides share; see native/plan/format.h. */
/** What lives how long. */
export const ARENA = {
  weights: 0,
  grads: 1,
  moment0: 2,
  moment1: 3,
  ema: 4,
  activations: 5,
  prepared: 6,
  input: 7,
  output: 8,
  image: 9,
} as const
export const ARENA_COUNT = 10
/** Of every tensor offset, bytes. */
export const ALIGNMENT = 64
