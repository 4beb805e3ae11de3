import { EffnetError } from '../errors.js'
import type { Precision } from './types.js'

const NAMES: Record<string, Precision> = {
  fp32: 'fp32',
  '32-true': 'fp32',
  '32': 'fp32',
  tf32: 'tf32',
  'fp16-mixed': 'fp16-mixed',
  '16-mixed': 'fp16-mixed',
  '16': 'fp16-mixed',
  fp16: 'fp16-mixed',
  'bf16-mixed': 'bf16-mixed',
  bf16: 'bf16-mixed',
}

/** @throws EFF_PRECISION naming the formats there are */
export function normalizePrecision(value: string | number): Precision {
  const found = NAMES[String(value)]
  if (found) return found
  throw new EffnetError('EFF_PRECISION', `no precision "${value}"`, {
    hint: 'fp32, tf32, fp16-mixed or bf16-mixed',
    details: { value },
  })
}
