import { EffnetError } from '../errors.js'
import type { Precision } from './types.js'

const NAMES: Record<string, Precision> = {
  fp32: 'fp32',
  '32-true': 'fp32',
  '32': 'fp32',
  'bf16-mixed': 'bf16-mixed',
  bf16: 'bf16-mixed',
}

/** @throws EFF_PRECISION naming the formats there are */
export function normalizePrecision(value: string | number): Precision {
  const found = NAMES[String(value)]
  if (found) return found
  throw new EffnetError('EFF_PRECISION', `no precision "${value}"`, { hint: 'fp32 or bf16-mixed', details: { value } })
}
