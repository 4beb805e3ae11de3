import { EffnetError } from '../errors.js'
import { nearest } from '../nearest.js'
import type { Callback } from './types.js'

const MEMBERS = {
  name: true,
  onSetup: true,
  onFitStart: true,
  onEpochStart: true,
  onStepStart: true,
  onStepEnd: true,
  onEpochEnd: true,
  onValidationStart: true,
  onValidationBatch: true,
  onValidationEnd: true,
  onCheckpointSave: true,
  onCheckpointLoad: true,
  onWarning: true,
  onException: true,
  onInterrupt: true,
  onFitEnd: true,
  onTeardown: true,
  state: true,
  load: true,
} as const satisfies Record<keyof Callback, true>
const FUNCTIONS = Object.keys(MEMBERS).filter((key) => key !== 'name')
const HOOKS = FUNCTIONS.filter((key) => key.startsWith('on'))

/** Of the object and of its classes. */
function namesOf(value: object): Set<string> {
  const names = new Set<string>()
  for (let at: object | null = value; at && at !== Object.prototype; at = Object.getPrototypeOf(at))
    for (const name of Object.getOwnPropertyNames(at)) names.add(name)
  return names
}

/**
 * A hook that is misspelt would never be called.
 * @throws EFF_CONFIG_VALUE what is no callback; EFF_CONFIG_KEY no such hook, with the nearest
 */
export function checkCallbacks(callbacks: readonly unknown[]): void {
  for (const [i, given] of callbacks.entries()) {
    const wrong = (why: string, hint: string): EffnetError =>
      new EffnetError('EFF_CONFIG_VALUE', `callbacks[${i}] ${why}`, { hint, details: { index: i } })
    if (typeof given !== 'object' || given === null)
      throw wrong(`is ${given === null ? 'null' : typeof given}`, 'an object with a name and hooks')
    const callback = given as Record<string, unknown>
    const { name } = callback
    if (typeof name !== 'string' || name === '')
      throw wrong('has no name', 'give it one: its state is kept in checkpoints under it')
    for (const key of FUNCTIONS) {
      if (callback[key] !== undefined && typeof callback[key] !== 'function')
        throw wrong(`("${name}"): ${key} is no function`, `${key}(ctx) { ... }`)
    }
    const unknown = [...namesOf(given)].find(
      (key) => /^on[A-Z]/.test(key) && typeof callback[key] === 'function' && !Object.hasOwn(MEMBERS, key),
    )
    if (unknown === undefined) continue
    const close = nearest(unknown, HOOKS, 1)
    throw new EffnetError('EFF_CONFIG_KEY', `callbacks[${i}] ("${name}"): there is no hook ${unknown}`, {
      hint: close.length > 0 ? `did you mean ${close[0]}?` : `there are ${HOOKS.join(', ')}`,
      details: { key: unknown, nearest: close },
    })
  }
}
