/**
 * Random initialisation, by the rules of the model's dialect. Counter-based: a value depends on the seed, the tensor's position
 * in the state_dict and the element alone.
 */
import { setImmediate } from 'node:timers/promises'
import { EffnetError } from '../errors.js'
import { philoxBlock, philoxU32 } from '../graph/philox.js'
import { elements, type Shape } from '../graph/types.js'
import type { Dialect, ModelConfig } from './config.js'
import { modelParams, type ParamDef } from './params.js'

export type Distribution =
  | { readonly kind: 'constant'; readonly value: number }
  | { readonly kind: 'normal'; readonly std: number }
  /** Normal of `std`, redrawn beyond two of it. */
  | { readonly kind: 'truncated'; readonly std: number }
  /** In [-bound, bound). */
  | { readonly kind: 'uniform'; readonly bound: number }

const constant = (value: number): Distribution => ({ kind: 'constant', value })
const normal = (std: number): Distribution => ({ kind: 'normal', std })
const uniform = (bound: number): Distribution => ({ kind: 'uniform', bound })

/** Standard deviation of a unit normal cut at two deviations. */
const TRUNCATED_STD = 0.87962566103423978

/** Steps at and above this are never training steps; redraws of the truncated normal count up from it. */
const INIT_STEP = 2 ** 48

/** He initialisation of a convolution of OIHW shape, as each source counts the fan of a depthwise one. */
function convRule(dialect: Dialect, [o = 1, i = 1, kh = 1, kw = 1]: Shape, depthwise: boolean): Distribution {
  const area = kh * kw
  if (dialect === 'nvidia-pytorch') return normal(Math.sqrt(2 / (area * i)))
  if (dialect === 'torchvision') return normal(Math.sqrt(2 / (area * o)))
  const std = Math.sqrt(2 / (area * (depthwise ? 1 : o)))
  return dialect === 'nvidia-tf2' ? { kind: 'truncated', std: std / TRUNCATED_STD } : normal(std)
}

/** What each parameter and buffer of a new model is drawn from, in state_dict order. */
export function initRules(config: ModelConfig): { param: ParamDef; rule: Distribution }[] {
  let fanIn = 0
  return modelParams(config).map((param) => {
    // A bias follows its weights, whose fan bounds it.
    if (param.info.torchShape.length > 1) fanIn = elements(param.info.torchShape.slice(1))
    return { param, rule: ruleOf(config.dialect, param, fanIn) }
  })
}

function ruleOf(dialect: Dialect, { info: { kind, torchShape } }: ParamDef, fanIn: number): Distribution {
  // NVIDIA's PyTorch trainer leaves the layers with a bias to torch's defaults.
  const torchDefault = dialect === 'nvidia-pytorch'
  switch (kind) {
    case 'conv':
    case 'depthwise':
      return convRule(dialect, torchShape, kind === 'depthwise')
    case 'se_weights':
      return torchDefault ? uniform(1 / Math.sqrt(fanIn)) : convRule(dialect, torchShape, false)
    case 'linear_weights':
      return uniform(1 / Math.sqrt(torchDefault ? fanIn : torchShape[0]!))
    case 'se_bias':
    case 'linear_bias':
      return torchDefault ? uniform(1 / Math.sqrt(fanIn)) : constant(0)
    case 'bn_scale':
    case 'bn_var':
      return constant(1)
    case 'bn_shift':
    case 'bn_mean':
      return constant(0)
  }
}

/** A classifier put onto pretrained features starts small: N(0, 0.01), bias 0. */
export function headRule(param: ParamDef): Distribution {
  if (param.info.kind === 'linear_weights') return normal(0.01)
  if (param.info.kind === 'linear_bias') return constant(0)
  throw new EffnetError('EFF_INTERNAL', `${param.name} is not of the classifier`)
}

/** Fills elements [begin, end) of a tensor; `begin` is a multiple of 4. `stream` tells tensors apart. */
export function fillRandom(
  into: Float32Array,
  rule: Distribution,
  key: { seed: number; stream: number },
  begin = 0,
  end = into.length,
): void {
  if (rule.kind === 'constant') {
    into.fill(rule.value, begin, end)
    return
  }
  const { seed, stream } = key
  const words = new Uint32Array(4)
  for (let i = begin; i < end; i += 4) {
    philoxBlock(seed, INIT_STEP, stream, i / 4, words)
    const count = Math.min(4, end - i)
    if (rule.kind === 'uniform') {
      for (let j = 0; j < count; j++) into[i + j] = (words[j]! / 2147483648 - 1) * rule.bound
      continue
    }
    for (let j = 0; j < count; j++) {
      let z = gaussian(words[j & 2]!, words[(j & 2) + 1]!, j & 1)
      if (rule.kind === 'truncated' && Math.abs(z) > 2) z = redraw(seed, stream, i + j)
      into[i + j] = z * rule.std
    }
  }
}

/** Box-Muller; `which` chooses one of the two values. */
function gaussian(word0: number, word1: number, which: number): number {
  const radius = Math.sqrt(-2 * Math.log((word0 + 0.5) / 4294967296))
  const angle = (word1 / 4294967296) * 2 * Math.PI
  return radius * (which === 0 ? Math.cos(angle) : Math.sin(angle))
}

function redraw(seed: number, stream: number, element: number): number {
  for (let attempt = 1; ; attempt++) {
    const word = (n: number): number => philoxU32(seed, INIT_STEP + attempt, stream, 2 * element + n)
    const z = gaussian(word(0), word(1), 0)
    if (Math.abs(z) <= 2) return z
  }
}

/** A chunk takes well under a millisecond. */
const CHUNK = 4096

/**
 * Draws parameters and buffers of a new model and hands each to `write`, in stored layout, in state_dict order. `only` selects
 * tensors (their values do not change by it); with `newHead` the classifier follows `headRule`. Gives way to the event loop between chunks.
 */
export async function initParams(
  config: ModelConfig,
  seed: number,
  write: (param: ParamDef, values: Float32Array) => void | Promise<void>,
  options: { only?: (name: string) => boolean; newHead?: boolean; signal?: AbortSignal } = {},
): Promise<void> {
  for (const [stream, { param, rule: usual }] of initRules(config).entries()) {
    if (options.only && !options.only(param.name)) continue
    const head = param.info.kind === 'linear_weights' || param.info.kind === 'linear_bias'
    const rule = options.newHead && head ? headRule(param) : usual
    const values = new Float32Array(elements(param.shape))
    for (let begin = 0; begin < values.length; begin += CHUNK) {
      fillRandom(values, rule, { seed, stream }, begin, Math.min(begin + CHUNK, values.length))
      if (values.length > CHUNK) await setImmediate()
    }
    if (options.signal?.aborted)
      throw new EffnetError('EFF_ABORTED', 'initialisation was aborted', { cause: options.signal.reason })
    await write(param, values)
  }
}
