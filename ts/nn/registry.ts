/** Model names and what they stand for. Tables are in arch/. */
import { EffnetError } from '../errors.js'
import { nearest } from '../nearest.js'
import {
  HALF,
  IMAGENET_MEAN,
  IMAGENET_STD,
  type PreprocessingRow,
  TIMM_PREPROCESSING,
  TORCHVISION_PREPROCESSING,
} from './arch/preprocessing.js'
import {
  LITE_SCALING,
  type Scaling,
  type StageRow,
  V1_BASE,
  V1_SCALING,
  V2_BASE,
  V2_LARGE,
  V2_SCALING,
  WIDESE_VARIANTS,
} from './arch/tables.js'
import {
  DIALECTS,
  type Dialect,
  type Family,
  type ModelConfig,
  type Padding,
  type Preprocessing,
  type StageConfig,
} from './config.js'

type V1Variant = keyof typeof V1_SCALING
type LiteVariant = keyof typeof LITE_SCALING
type V2Variant = keyof typeof V2_SCALING | keyof typeof V2_LARGE
/** Architectures; a `tf_` prefix selects TensorFlow's padding, BN epsilon and preprocessing. */
export type ArchName =
  | `efficientnet_${V1Variant}`
  | `efficientnet_widese_${(typeof WIDESE_VARIANTS)[number]}`
  | `efficientnetv2_${V2Variant}`
  | `efficientnet_${LiteVariant}`
export type ModelName = ArchName | `tf_${ArchName}`

interface Arch {
  readonly family: Family
  readonly stem: number
  readonly head: number
  readonly stages: readonly StageConfig[]
  readonly size: number
  readonly evalSize: number
  readonly dropRate: number
}

/** Rounds a scaled width to a multiple of 8; with `guard`, never more than 10 % below it. */
function roundChannels(channels: number, guard: boolean): number {
  const rounded = Math.max(8, Math.floor((channels + 4) / 8) * 8)
  return guard && rounded < 0.9 * channels ? rounded + 8 : rounded
}

const link = (stem: number, stages: readonly Omit<StageConfig, 'in'>[]): StageConfig[] =>
  stages.map((stage, i) => ({ ...stage, in: i === 0 ? stem : stages[i - 1]!.out }))

interface ScaleRule {
  family: Family
  base: readonly StageRow[]
  scaling: Scaling
  guard?: boolean
  fixedEnds?: boolean
  se?: boolean
}

function scaled({ family, base, scaling: s, guard = true, fixedEnds = false, se = true }: ScaleRule): Arch {
  const width = (c: number): number => roundChannels(c * s.width, guard)
  const stem = fixedEnds ? 32 : width(32)
  const stages = base.map((row, i) => {
    const keepDepth = fixedEnds && (i === 0 || i === base.length - 1)
    return {
      ...row,
      out: width(row.out),
      repeats: keepDepth ? row.repeats : Math.ceil(row.repeats * s.depth),
      se: row.se && se,
    }
  })
  const head = fixedEnds ? 1280 : width(1280)
  return { family, stem, head, stages: link(stem, stages), size: s.size, evalSize: s.evalSize, dropRate: s.dropRate }
}

const keys = <T extends object>(o: T): (keyof T & string)[] => Object.keys(o) as (keyof T & string)[]

const ARCHS = new Map<string, () => Arch>()
for (const v of keys(V1_SCALING)) {
  ARCHS.set(`efficientnet_${v}`, () => scaled({ family: 'v1', base: V1_BASE, scaling: V1_SCALING[v] }))
}
for (const v of WIDESE_VARIANTS) {
  ARCHS.set(`efficientnet_widese_${v}`, () => scaled({ family: 'widese', base: V1_BASE, scaling: V1_SCALING[v] }))
}
for (const v of keys(LITE_SCALING)) {
  const rule = { family: 'lite', base: V1_BASE, scaling: LITE_SCALING[v], fixedEnds: true, se: false } as const
  ARCHS.set(`efficientnet_${v}`, () => scaled(rule))
}
for (const v of keys(V2_LARGE)) {
  const { stages, ...rest } = V2_LARGE[v]
  ARCHS.set(`efficientnetv2_${v}`, () => ({ family: 'v2', head: 1280, stages: link(rest.stem, stages), ...rest }))
}
for (const v of keys(V2_SCALING)) {
  ARCHS.set(`efficientnetv2_${v}`, () => scaled({ family: 'v2', base: V2_BASE, scaling: V2_SCALING[v], guard: false }))
}

const NAMES: readonly string[] = [...ARCHS.keys()].flatMap((name) => [name, `tf_${name}`]).sort()

/** Names known to `getModelConfig`, sorted; `filter` is a glob with `*` and `?`. */
export function listModels(filter?: string): ModelName[] {
  const all = NAMES as readonly ModelName[]
  if (filter === undefined) return [...all]
  const escaped = filter.replace(/[.+^${}()|[\]\\]/g, '\\$&')
  const pattern = new RegExp(`^${escaped.replace(/\*/g, '.*').replace(/\?/g, '.')}$`)
  return all.filter((name) => pattern.test(name))
}

export interface ConfigOverrides {
  numClasses?: number
  /** Asked for by name, 'timm' and 'torchvision' also leave the EXIF orientation alone, as these libraries do. */
  dialect?: Dialect
  padding?: Padding
  bnEps?: number
  bnMomentum?: number
  dropRate?: number
  dropPathRate?: number
  imageSize?: number
  evalSize?: number
  preprocessing?: Partial<Preprocessing>
}

/**
 * The configuration of a model. `name` may carry a weight set after a dot, as in timm (`tf_efficientnet_b0.ap_in1k`), which
 * selects that set's preprocessing. `tf_` names take dialects that pad "SAME": timm (default) and nvidia-tf2. WideSE comes
 * from NVIDIA's PyTorch trainer and has its constants unless a prefix or dialect says otherwise.
 *
 * Throws EFF_MODEL_UNKNOWN (with the nearest names) and EFF_CONFIG_VALUE (a dialect that has no such model, a bad override).
 */
export function getModelConfig(name: string, overrides: ConfigOverrides = {}): ModelConfig {
  const [base, tag] = splitTag(name)
  const tf = base.startsWith('tf_')
  const archName = tf ? base.slice(3) : base
  const make = ARCHS.get(archName)
  if (!make) throw unknownModel(base)
  const arch = make()
  const dialect = overrides.dialect ?? (arch.family === 'widese' && !tf ? 'nvidia-pytorch' : 'timm')
  checkDialect(base, archName, arch.family, tf, dialect)
  const norm = normConstants(archName, arch.family, tf, dialect)
  const row = preprocessingRow(base, archName, tag, dialect)
  const native = row.evalSize ?? arch.evalSize
  const imageSize = overrides.imageSize ?? row.size ?? arch.size
  const evalSize = overrides.evalSize ?? overrides.imageSize ?? native
  const config: ModelConfig = {
    name: base,
    arch: archName,
    family: arch.family,
    dialect,
    padding: overrides.padding ?? (tf || dialect === 'nvidia-tf2' ? 'same' : 'symmetric'),
    bnEps: overrides.bnEps ?? norm.eps,
    bnMomentum: overrides.bnMomentum ?? norm.momentum,
    act: arch.family === 'lite' ? 'relu6' : 'silu',
    numClasses: overrides.numClasses ?? row.classes ?? 1000,
    stem: arch.stem,
    stages: arch.stages,
    head: arch.head,
    se: { rule: arch.family === 'widese' ? 'expanded' : 'input', ratio: 0.25 },
    dropRate: overrides.dropRate ?? arch.dropRate,
    dropPathRate: overrides.dropPathRate ?? recipeDropPath(archName, dialect),
    imageSize,
    evalSize,
    preprocessing: {
      ...resolvePreprocessing(row, native, evalSize, dialect),
      exifOrientation: overrides.dialect !== 'timm' && overrides.dialect !== 'torchvision',
      ...overrides.preprocessing,
    },
  }
  checkValues(config)
  return config
}

function splitTag(name: string): [base: string, tag: string | undefined] {
  const dot = name.indexOf('.')
  return dot < 0 ? [name, undefined] : [name.slice(0, dot), name.slice(dot + 1)]
}

function unknownModel(name: string): EffnetError {
  const close = nearest(name.replaceAll('-', '_'), NAMES, 5)
  const did = close.length ? `did you mean ${close.join(', ')}?  ` : ''
  return new EffnetError('EFF_MODEL_UNKNOWN', `no model "${name}"`, {
    hint: `${did}effnet models list   names all`,
    details: { name, nearest: close },
  })
}

function checkDialect(name: string, archName: string, family: Family, tf: boolean, dialect: Dialect): void {
  const fail = (why: string, hint: string): never => {
    throw new EffnetError('EFF_CONFIG_VALUE', why, { hint, details: { name, dialect } })
  }
  if (!DIALECTS.includes(dialect)) fail(`no dialect "${dialect}"`, `one of ${DIALECTS.join(', ')}`)
  if (tf && (dialect === 'torchvision' || dialect === 'nvidia-pytorch')) {
    fail(
      `${name} pads as TensorFlow does, the dialect ${dialect} symmetrically`,
      `${archName} with this dialect, or dialect timm`,
    )
  }
  const defined: Record<Dialect, boolean> = {
    timm: true,
    torchvision: archName in TORCHVISION_PREPROCESSING,
    'nvidia-tf2': family === 'v1' || family === 'v2',
    'nvidia-pytorch': family === 'widese' || (family === 'v1' && !/(b8|l2)$/.test(archName)),
  }
  if (!defined[dialect]) fail(`${dialect} has no ${archName}`, 'dialect timm')
}

function normConstants(archName: string, family: Family, tf: boolean, dialect: Dialect): { eps: number; momentum: number } {
  if (dialect === 'nvidia-tf2' || dialect === 'nvidia-pytorch') return { eps: 1e-3, momentum: 0.01 }
  if (dialect === 'torchvision' && family === 'v2') return { eps: 1e-3, momentum: 0.1 }
  if (dialect === 'torchvision' && /_b[5-7]$/.test(archName)) return { eps: 1e-3, momentum: 0.01 }
  return { eps: tf ? 1e-3 : 1e-5, momentum: 0.1 }
}

/** The published recipes use 0.2; NVIDIA's PyTorch trainer has stochastic depth for B4 alone. */
const recipeDropPath = (archName: string, dialect: Dialect): number =>
  dialect === 'nvidia-pytorch' && !archName.endsWith('_b4') ? 0 : 0.2

function preprocessingRow(base: string, archName: string, tag: string | undefined, dialect: Dialect): PreprocessingRow {
  const table = dialect === 'torchvision' ? TORCHVISION_PREPROCESSING : TIMM_PREPROCESSING
  const key = dialect === 'torchvision' ? archName : base
  const known = Object.keys(table).filter((k) => k.startsWith(`${key}.`))
  if (tag !== undefined && !known.includes(`${key}.${tag}`)) {
    throw new EffnetError('EFF_MODEL_UNKNOWN', `${key} has no weight set "${tag}"`, {
      hint: known.length ? `one of ${known.join(', ')}` : `the name alone: ${base}`,
      details: { name: base, tag, known },
    })
  }
  const row = dialect.startsWith('nvidia') ? {} : (table[key] ?? {})
  return tag === undefined ? row : { ...row, ...table[`${key}.${tag}`] }
}

/** `native`: the size the weights are evaluated at, where the source's own short side holds. */
function resolvePreprocessing(
  row: PreprocessingRow,
  native: number,
  evalSize: number,
  dialect: Dialect,
): Omit<Preprocessing, 'exifOrientation'> {
  const half = row.norm === 'half'
  const constants = { mean: half ? HALF : IMAGENET_MEAN, std: half ? HALF : IMAGENET_STD } as const
  const interpolation = row.interpolation ?? (dialect === 'nvidia-tf2' ? 'bilinear' : 'bicubic')
  const cropMode = row.cropMode ?? 'center'
  const rest = { ...constants, interpolation, cropMode }
  // NVIDIA's trainers leave a margin of 32 pixels at every size.
  if (dialect.startsWith('nvidia')) return { ...rest, cropPct: evalSize / (evalSize + 32), evalResize: evalSize + 32 }
  const cropPct = row.cropPct ?? (row.evalResize ? native / row.evalResize : 0.875)
  if (evalSize !== native) return { ...rest, cropPct, evalResize: Math.round(evalSize / cropPct) }
  // torchvision names the short side; timm truncates the quotient.
  return { ...rest, cropPct, evalResize: row.evalResize ?? Math.floor(native / cropPct) }
}

function checkValues(c: ModelConfig): void {
  const check = (ok: boolean, key: string, value: number, range: string): void => {
    if (ok) return
    throw new EffnetError('EFF_CONFIG_VALUE', `${key} is ${value}; it must be ${range}`, {
      details: { key, value },
    })
  }
  const size = (v: number): boolean => Number.isInteger(v) && v >= 32 && v <= 4096
  check(
    Number.isInteger(c.numClasses) && c.numClasses >= 1 && c.numClasses <= 1e6,
    'numClasses',
    c.numClasses,
    'an integer of 1..1000000',
  )
  check(size(c.imageSize), 'imageSize', c.imageSize, 'an integer of 32..4096')
  check(size(c.evalSize), 'evalSize', c.evalSize, 'an integer of 32..4096')
  check(c.dropRate >= 0 && c.dropRate < 1, 'dropRate', c.dropRate, 'in [0, 1)')
  check(c.dropPathRate >= 0 && c.dropPathRate < 1, 'dropPathRate', c.dropPathRate, 'in [0, 1)')
  check(c.bnEps > 0 && c.bnEps < 1, 'bnEps', c.bnEps, 'in (0, 1)')
  check(c.bnMomentum >= 0 && c.bnMomentum <= 1, 'bnMomentum', c.bnMomentum, 'in [0, 1]')
  const { cropPct } = c.preprocessing
  check(cropPct > 0 && cropPct <= 1, 'preprocessing.cropPct', cropPct, 'in (0, 1]')
}
