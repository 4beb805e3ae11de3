/** What the parameters of a new model are drawn from, by the rules of its dialect; ts/runtime/init.ts draws them. */
import { EffnetError } from '../errors.js'
import { elements, type Shape } from '../graph/types.js'
import type { Dialect, ModelConfig } from './config.js'
import { modelParams, type ParamDef } from './params.js'

export type Distribution = { readonly kind: 'constant'; readonly value: number } | RandomDistribution

/** The parameters are at least 0. */
export type RandomDistribution =
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
