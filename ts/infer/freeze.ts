import { EffnetError } from '../errors.js'
import type { FreezeSelector } from './types.js'

const GLOB = /[*?[\]]/

/** Parameters that a selector names. */
export function selectNames(names: readonly string[], selector: FreezeSelector): string[] {
  const found = names.filter(predicate(selector))
  if (found.length > 0) return found
  throw new EffnetError('EFF_INVALID_ARGUMENT', `no parameter matches ${String(selector)}`, {
    hint: `'backbone', a glob such as 'blocks.[0-3].*', a regular expression; names look like ${names[0]} and ${names.at(-1)}`,
  })
}

function expression(source: string, glob: string): RegExp {
  try {
    return new RegExp(source)
  } catch (cause) {
    throw new EffnetError('EFF_INVALID_ARGUMENT', `"${glob}" is not a glob that can be read`, {
      hint: 'close every [, with ranges from the lower to the higher: blocks.[0-3].*',
      cause,
    })
  }
}

function predicate(selector: FreezeSelector): (name: string) => boolean {
  if (typeof selector === 'function') return selector
  // A global or sticky expression remembers where it stopped.
  if (selector instanceof RegExp) return (name) => new RegExp(selector.source, selector.flags.replace(/[gy]/g, '')).test(name)
  if (selector === 'all') return () => true
  if (selector === 'backbone') return (name) => !name.startsWith('classifier.')
  if (!GLOB.test(selector)) return (name) => name === selector || name.startsWith(`${selector}.`)
  const escaped = selector.replace(/[.+^${}()|\\]/g, '\\$&')
  const pattern = expression(`^${escaped.replace(/\*/g, '.*').replace(/\?/g, '.')}$`, selector)
  return (name) => pattern.test(name)
}
