import type { StepScalars } from '../runtime/scalars.js'
import type { Progress } from './progress.js'
import { emaDecay, learningRate, type ScheduleSpec } from './schedule.js'
import type { ResolvedOptions } from './types.js'

/** What the training plan is told for batch `part` of the next step. */
export function stepScalars(
  { optimizer, ema, clipNorm, lossScale, seed, accumulate }: ResolvedOptions,
  schedule: ScheduleSpec,
  { step, emaUpdates, skipped }: Progress,
  part: number,
): Partial<StepScalars> {
  const adam = optimizer.name === 'adamw'
  return {
    lr: learningRate(schedule, step),
    step: step * accumulate + part,
    part,
    parts: accumulate,
    seed,
    weight_decay: optimizer.weightDecay,
    momentum: adam ? optimizer.betas[0] : optimizer.momentum,
    alpha: adam ? optimizer.betas[1] : optimizer.alpha,
    eps: optimizer.eps,
    clip_norm: clipNorm,
    ema_decay: ema > 0 ? emaDecay(ema, emaUpdates + 1) : 0,
    // Where the loss is scaled the device takes off what it skipped.
    optimizer_step: step + 1 - (lossScale ? 0 : skipped),
    ...(lossScale && { scale_interval: lossScale.interval, scale_growth: lossScale.growth, scale_backoff: lossScale.backoff }),
  }
}
