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
  'loss_scale',
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
  loss_scale: 1,
}

export const packScalars = (s: Partial<StepScalars>): Float64Array =>
  Float64Array.from(STEP_SCALARS, (name) => s[name] ?? DEFAULT_SCALARS[name])
