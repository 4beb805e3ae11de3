/** Hyper-parameters and counters of a step, in the order of `StepScalars` in native/core/step_scalars.h. */
export const STEP_SCALARS = [
  'lr',
  'step',
  'seed',
  'weight_decay',
  'momentum',
  'alpha',
  'eps',
  'clip_norm',
  'ema_decay',
  'optimizer_step',
  'part',
  'parts',
  'scale_interval',
  'scale_growth',
  'scale_backoff',
] as const

export type StepScalars = Record<(typeof STEP_SCALARS)[number], number>

export const DEFAULT_SCALARS: Readonly<StepScalars> = {
  lr: 0,
  step: 0,
  seed: 0,
  weight_decay: 0,
  momentum: 0,
  alpha: 0,
  eps: 0,
  clip_norm: 0,
  ema_decay: 0,
  optimizer_step: 1,
  part: 0,
  parts: 1,
  scale_interval: 0,
  scale_growth: 2,
  scale_backoff: 0.5,
}

export const packScalars = (s: Partial<StepScalars>): Float64Array =>
  Float64Array.from(STEP_SCALARS, (name) => s[name] ?? DEFAULT_SCALARS[name])
