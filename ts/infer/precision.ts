import { EffnetError } from '../errors.js'
import type { Precision } from './types.js'

const NAMES: Record<string, Precision> = {
  fp32: 'fp32',
  '32-true': 'fp32',
  '32': 'fp32',
  'bf16-mixed': 'bf16-mixed',
  bf16: 'bf16-mixed',
}

/** @throws EFF_PRECISION naming the formats that this backend has */
export function normalizePrecision(value: string | number): Precision {
  const found = NAMES[String(value)]
  if (found) return found
  throw new EffnetError('EFF_PRECISION', `no precision "${value}" on the CPU`, { hint: 'fp32 or bf16-mixed', details: { value } })
}

/** @throws EFF_BACKEND_MISSING for any device that this build cannot serve: never another one instead */
export function checkDevice(device: string): 'cpu' {
  if (device === 'auto' || device === 'cpu') return 'cpu'
  if (/^cuda(:\d+)?$/.test(device)) {
    throw new EffnetError('EFF_BACKEND_MISSING', `device "${device}": this build has the CPU backend only`, {
      hint: "device 'cpu'",
    })
  }
  throw new EffnetError('EFF_CONFIG_VALUE', `no device "${device}"`, { hint: "'cpu'" })
}
