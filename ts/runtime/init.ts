/**
 * Random initialisation. Counter-based: a value depends on the seed, the tensor's position in the state_dict and the element
 * alone.
 */
import { setImmediate } from 'node:timers/promises'
import { binding } from '../binding.js'
import { EffnetError } from '../errors.js'
import { elements } from '../graph/types.js'
import { type Distribution, headRule, initRules, type ModelConfig, type ParamDef } from '../nn/index.js'

/** Fills elements [begin, end) of a tensor; `begin` is a multiple of 4. `stream` tells tensors apart. */
export function fillRandom(
  into: Float32Array,
  rule: Distribution,
  { seed, stream }: { seed: number; stream: number },
  begin = 0,
  end = into.length,
): void {
  if (rule.kind === 'constant') into.fill(rule.value, begin, end)
  else binding().fillRandom(into, rule, seed, stream, begin, end)
}

/** A multiple of 4 that takes well under a millisecond. */
const CHUNK = 65536

/**
 * Draws parameters and buffers of a new model and hands each to `write`, in stored layout, in state_dict order. `only` selects
 * tensors (their values do not change by it); with `newHead` the classifier follows `headRule`. Gives way to the event loop
 * after every `CHUNK` values.
 */
export async function initParams(
  config: ModelConfig,
  seed: number,
  write: (param: ParamDef, values: Float32Array) => void | Promise<void>,
  options: { only?: (name: string) => boolean; newHead?: boolean; signal?: AbortSignal } = {},
): Promise<void> {
  let sinceYield = 0
  for (const [stream, { param, rule: usual }] of initRules(config).entries()) {
    if (options.only && !options.only(param.name)) continue
    const head = param.info.kind === 'linear_weights' || param.info.kind === 'linear_bias'
    const rule = options.newHead && head ? headRule(param) : usual
    const values = new Float32Array(elements(param.shape))
    for (let begin = 0; begin < values.length; begin += CHUNK) {
      const end = Math.min(begin + CHUNK, values.length)
      fillRandom(values, rule, { seed, stream }, begin, end)
      sinceYield += end - begin
      if (sinceYield >= CHUNK) {
        await setImmediate()
        sinceYield = 0
      }
    }
    if (options.signal?.aborted)
      throw new EffnetError('EFF_ABORTED', 'initialisation was aborted', { cause: options.signal.reason })
    await write(param, values)
  }
}
