import { EffnetError } from './errors.js'
import { nearest } from './nearest.js'

/**
 * Options of a public call hold no keys but these: a misspelt one would silently be a default.
 * @throws EFF_CONFIG_KEY with the nearest key
 */
export function checkKeys(call: string, options: object, known: Readonly<Record<string, true>>): void {
  if (typeof options !== 'object' || options === null) {
    throw new EffnetError('EFF_INVALID_ARGUMENT', `${call}: the options are ${options === null ? 'null' : typeof options}`, {
      hint: `an object with any of ${Object.keys(known).join(', ')}`,
    })
  }
  for (const key of Object.keys(options)) {
    if (Object.hasOwn(known, key)) continue
    const close = nearest(key, Object.keys(known), 1)
    throw new EffnetError('EFF_CONFIG_KEY', `${call} has no option "${key}"`, {
      hint: close.length > 0 ? `did you mean ${close[0]}?` : `there are ${Object.keys(known).join(', ')}`,
      details: { key, nearest: close },
    })
  }
}
