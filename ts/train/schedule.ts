/**
 * Learning rate per optimizer step t = 0, 1, 2, ... The recipes from scratch warm up in NVIDIA's TF2 form, whose first step has
 * rate 0; fine-tuning in its PyTorch form, where each step counts: a run of one step learns.
 * Pure functions of t, so a resumed run continues where it was.
 */
import { EffnetError } from '../errors.js'
import type { ScheduleName } from './types.js'

export interface ScheduleSpec {
  name: ScheduleName
  /** Peak rate. */
  lr: number
  stepsPerEpoch: number
  /** Steps of the whole run, warm-up included. */
  totalSteps: number
  warmupEpochs: number
  /** Warm-up at step t is lr * (t + warmupStart) / W: 0 (default) or 1. */
  warmupStart?: 0 | 1
  /** exponential. */
  rate: number
  decayEpochs: number
}

export const SCHEDULES: readonly ScheduleName[] = ['cosine', 'exponential', 'linear', 'constant']

/**
 * - warm-up: lr * (t + warmupStart) / W for t < W = round(warmupEpochs * stepsPerEpoch)
 * - cosine: lr * (1 + cos(pi * min(tau, D) / D)) / 2 with tau = t - W, D = totalSteps - W; ends at 0
 * - exponential: lr * rate ^ floor(tau / (decayEpochs * stepsPerEpoch)), a staircase
 * - linear: lr * (1 - min(tau, D) / D)
 * - constant: lr
 */
export function learningRate(spec: ScheduleSpec, t: number): number {
  const warmup = Math.round(spec.warmupEpochs * spec.stepsPerEpoch)
  if (t < warmup) return (spec.lr * (t + (spec.warmupStart ?? 0))) / warmup
  const tau = t - warmup
  const horizon = Math.max(1, spec.totalSteps - warmup)
  const done = Math.min(tau, horizon) / horizon
  switch (spec.name) {
    case 'constant':
      return spec.lr
    case 'linear':
      return spec.lr * (1 - done)
    case 'cosine':
      return spec.lr * 0.5 * (1 + Math.cos(Math.PI * done))
    case 'exponential':
      return spec.lr * spec.rate ** Math.floor(tau / (spec.decayEpochs * spec.stepsPerEpoch))
    default:
      throw new EffnetError('EFF_CONFIG_VALUE', `no schedule "${spec.name as string}"; there are ${SCHEDULES.join(', ')}`)
  }
}

/** Decay of the moving average after t updates: it starts fast, so that short runs have a usable average. */
export const emaDecay = (decay: number, t: number): number => Math.min(decay, (1 + t) / (10 + t))
