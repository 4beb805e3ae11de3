import { EffnetError } from '../errors.js'

const UNIT_MS: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** Milliseconds of a number of them, of '90s', '1.5h', '2d', or of 'HH:MM:SS' and 'DD:HH:MM:SS'. */
export function durationMs(value: number | string, key: string): number {
  const fail = (): never => {
    throw new EffnetError('EFF_CONFIG_VALUE', `${key}: "${value}" is no duration`, {
      // A command line has words alone, and there a number without a unit is none.
      hint: `${typeof value === 'number' ? 'milliseconds above 0, ' : ''}90s, 30m, 12h or DD:HH:MM:SS`,
      details: { key, value },
    })
  }
  if (typeof value === 'number') return value > 0 && Number.isFinite(value) ? value : fail()
  const simple = /^(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)$/.exec(value.trim())
  if (simple) return Number(simple[1]) * UNIT_MS[simple[2]!]!
  const parts = value.trim().split(':')
  if (parts.length < 3 || parts.length > 4 || !parts.every((p) => /^\d+$/.test(p))) return fail()
  const [s = 0, m = 0, h = 0, d = 0] = parts.map(Number).reverse()
  return ((d * 24 + h) * 60 + m) * 60_000 + s * 1000
}
