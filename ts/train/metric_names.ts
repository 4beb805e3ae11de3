import { EffnetError } from '../errors.js'
import { nearest } from '../nearest.js'
import type { ResolvedOptions } from './types.js'

/** What an epoch's metrics hold; callbacks may add others at the end of a validation. */
export const metricNames = (validates: boolean, { ema, lossScale }: Pick<ResolvedOptions, 'ema' | 'lossScale'>): string[] => [
  'train/loss',
  'train/top1',
  ...(validates ? ['val/loss', 'val/top1', 'val/top5'] : []),
  ...(validates && ema > 0 ? ['val_ema/loss', 'val_ema/top1', 'val_ema/top5'] : []),
  'lr',
  ...(lossScale ? ['loss_scale', 'skipped_steps'] : []),
  'images_per_s',
  'data_wait',
]

/** A metric that nobody measures would never be the best and never stop a run. */
export function noSuchMetric(where: string, name: string, there: readonly string[]): EffnetError {
  const close = nearest(name, there, 1)
  return new EffnetError('EFF_CONFIG_VALUE', `${where} = "${name}": no such metric`, {
    hint: `${close.length > 0 ? `did you mean ${close[0]}? ` : ''}there are ${there.join(', ')}`,
    details: { metric: name, there },
  })
}
