/** Which tensor of a file goes where in a model's arena, or why it does not fit. */
import { ARENA, type TensorTransfer } from '../binding.js'
import { EffnetError } from '../errors.js'
import { elements, type Shape } from '../graph/types.js'
import type { ModelConfig } from '../nn/config.js'
import { modelParams, type ParamDef } from '../nn/params.js'
import { canonicalName, detectNaming, isIgnored, type Naming, tensorNames } from './names.js'
import type { SafetensorsFile, TensorEntry } from './safetensors.js'

export interface MatchOptions {
  /** Byte offset of each parameter and buffer in the arena. */
  offsetOf: (name: string) => number
  /** Default: weights. */
  arena?: number
  /** A classifier of another class count is left out of the transfers instead of being an error. Default false. */
  replaceHead?: boolean
}

export interface WeightsMatch {
  readonly naming: Naming
  readonly transfers: readonly TensorTransfer[]
  /** The file's classifier was left out: class counts of the file and of the model. Initialise it with `initParams({ newHead: true })`. */
  readonly headReplaced?: { readonly from: number; readonly to: number }
  /** Tensors of the file without use here: batch counters, quantizer ranges. */
  readonly ignored: readonly string[]
}

interface Mismatch {
  readonly kind: 'shape' | 'dtype' | 'missing' | 'unexpected'
  readonly tensor: string
  readonly text: string
}

const FLOATS = ['F32', 'F16', 'BF16', 'F64'] as const
type FloatDtype = (typeof FLOATS)[number]
const isFloat = (dtype: string): dtype is FloatDtype => (FLOATS as readonly string[]).includes(dtype)

const sameShape = (a: Shape, b: Shape): boolean => a.length === b.length && a.every((d, i) => d === b[i])

/** SE layers are 1x1 convolutions or matrices, depending on the library. */
function fits(param: ParamDef, shape: Shape): boolean {
  return sameShape(shape, param.info.torchShape) || (param.info.layout === 'matrix' && sameShape(shape, param.shape))
}

/** How native code moves a tensor between a file and the arena. */
export function transferOf(
  param: ParamDef,
  place: { arena: number; offset: number },
  fileOffset: number,
  dtype: FloatDtype,
): TensorTransfer {
  const { layout, torchShape } = param.info
  // A 1x1 convolution is the same in both layouts.
  const spatial = torchShape.length === 4 && torchShape[2]! * torchShape[3]! > 1
  const permute = spatial && (layout === 'ohwi' || layout === 'hwc') ? layout : 'none'
  return { ...place, fileOffset, dtype, permute, shape: permute === 'none' ? [elements(param.shape)] : torchShape }
}

/** The file's class count, when its classifier fits in all but that. */
function headClasses(
  config: ModelConfig,
  find: (param: ParamDef) => TensorEntry | undefined,
  params: readonly ParamDef[],
): number | undefined {
  const weights = find(params.at(-2)!)
  const bias = find(params.at(-1)!)
  const [classes, width, ...more] = weights?.shape ?? []
  if (classes === undefined || width !== config.head || more.length || !bias) return undefined
  return sameShape(bias.shape, [classes]) ? classes : undefined
}

/**
 * Matches a file under timm's, torchvision's or NVIDIA's names with a model. Throws EFF_WEIGHTS_SHAPE listing the first five
 * tensors that do not fit (another shape, missing, unexpected, no floating-point type) and the mend.
 */
export function matchWeights(file: SafetensorsFile, config: ModelConfig, options: MatchOptions): WeightsMatch {
  const { offsetOf, arena = ARENA.weights, replaceHead = false } = options
  const byName = new Map<string, TensorEntry>()
  const problems: Mismatch[] = []
  for (const t of file.tensors.values()) {
    const name = canonicalName(t.name)
    const first = byName.get(name)
    if (first) problems.push({ kind: 'unexpected', tensor: t.name, text: `is ${first.name} once more` })
    else byName.set(name, t)
  }
  const naming = detectNaming(byName)
  if (!naming) throw unknownNames(file, config)

  const params = modelParams(config)
  const names = tensorNames(config, naming)
  const nameOf = new Map(params.map((p, i) => [p.name, names[i]!]))
  const find = (p: ParamDef): TensorEntry | undefined => byName.get(nameOf.get(p.name)!)
  const fileClasses = headClasses(config, find, params)
  const otherHead = fileClasses !== undefined && fileClasses !== config.numClasses
  const replaced = otherHead && replaceHead

  const transfers: TensorTransfer[] = []
  for (const param of params) {
    if (replaced && param.name.startsWith('classifier.')) continue
    const entry = find(param)
    const problem = entry
      ? misfit(param, entry)
      : { kind: 'missing' as const, text: `[${param.info.torchShape}] is not in the file` }
    if (problem) problems.push({ ...problem, tensor: entry?.name ?? nameOf.get(param.name)! })
    else transfers.push(transferOf(param, { arena, offset: offsetOf(param.name) }, entry!.begin, entry!.dtype as FloatDtype))
  }
  const expected = new Set(names)
  const ignored: string[] = []
  for (const [name, entry] of byName) {
    if (expected.has(name)) continue
    if (isIgnored(name)) ignored.push(entry.name)
    else problems.push({ kind: 'unexpected', tensor: entry.name, text: `[${entry.shape}] is not in the model` })
  }
  if (problems.length) throw shapeError(file, config, problems, otherHead ? fileClasses : undefined)
  return { naming, transfers, ignored, ...(replaced ? { headReplaced: { from: fileClasses, to: config.numClasses } } : {}) }
}

function misfit(param: ParamDef, entry: TensorEntry): Omit<Mismatch, 'tensor'> | undefined {
  if (!fits(param, entry.shape))
    return { kind: 'shape', text: `[${entry.shape}] in the file, [${param.info.torchShape}] in the model` }
  if (!isFloat(entry.dtype)) return { kind: 'dtype', text: `is ${entry.dtype}; weights are ${FLOATS.join(', ')}` }
  return undefined
}

/** Whether a head was the whole problem decides the mend. */
function shapeError(
  file: SafetensorsFile,
  config: ModelConfig,
  problems: Mismatch[],
  fileClasses: number | undefined,
): EffnetError {
  const first = problems.slice(0, 5).map((p) => `  ${p.tensor} ${p.text}`)
  const rest = problems.length > 5 ? `\n  and ${problems.length - 5} more` : ''
  const onlyHead = fileClasses !== undefined && problems.length === 2
  const stored = file.metadata.get('architecture')
  const other =
    stored && stored !== config.name
      ? `the file says its model is ${stored}: --model ${stored}`
      : 'choose the model these weights are of (--model)'
  const hint = onlyHead ? `--num-classes ${fileClasses}   (the class count of the file)` : other
  const count = `${problems.length} tensor${problems.length === 1 ? '' : 's'}`
  return new EffnetError(
    'EFF_WEIGHTS_SHAPE',
    `${file.path}: ${count} do${problems.length === 1 ? 'es' : ''} not fit ${config.name} with ${config.numClasses} classes:\n${first.join('\n')}${rest}`,
    {
      hint,
      details: {
        path: file.path,
        model: config.name,
        count: problems.length,
        mismatches: problems.slice(0, 5),
        fileClasses: fileClasses ?? null,
      },
    },
  )
}

function unknownNames(file: SafetensorsFile, config: ModelConfig): EffnetError {
  const names = [...file.tensors.keys()].slice(0, 5)
  return new EffnetError(
    'EFF_WEIGHTS_SHAPE',
    `${file.path}: no EfficientNet tensor names; the file begins with ${names.length ? names.join(', ') : 'no tensor at all'}`,
    {
      hint: "save the state_dict of a classifier under timm's, torchvision's or NVIDIA's names",
      details: { path: file.path, model: config.name, names },
    },
  )
}
