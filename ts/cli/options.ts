/**
 * Options as data. The tables here and in the verbs are read three times: by commander (names and arity), by the schema
 * (values, `schema.ts`, loaded only when there is something to validate) and by `--help`. The key is the option's name:
 * `batchSize` is `--batch-size`.
 */
import { Command, CommanderError, Option } from 'commander'
import { EffnetError } from '../errors.js'
import { nearest } from '../nearest.js'
import type { Io } from './io.js'

interface Common {
  help: string
  /** Environment variables that give a default, first one set wins. */
  env?: readonly string[]
  /** Shown in `--help`; the value itself is the library's. */
  shown?: string
  short?: string
  /** In `--help` by its name alone: few need it, and a verb's text fits a screen. */
  aside?: true
}
export interface FlagOption extends Common {
  kind: 'flag'
}
export interface NumberOption extends Common {
  kind: 'int' | 'number'
  value: string
  min?: number
  max?: number
  /** The value must be greater than `min`, not equal to it. */
  above?: boolean
}
export interface TextOption extends Common {
  kind: 'text'
  value: string
  /** `--resume [PATH]`: without a value it is ''. */
  optional?: boolean
  /** What the text has to be; `schema.ts` tells where it is not. */
  form?: 'memory limit'
}
export interface ChoiceOption extends Common {
  kind: 'choice'
  value: string
  choices: readonly string[]
  /** Other spellings and what they mean. */
  aliases?: Readonly<Record<string, string>>
}
export type OptionDef = FlagOption | NumberOption | TextOption | ChoiceOption
export type OptionTable = Readonly<Record<string, OptionDef>>

type One<D extends OptionDef> = D extends { kind: 'flag' }
  ? boolean
  : D extends { kind: 'int' | 'number' }
    ? number
    : D extends { kind: 'choice'; choices: readonly (infer C)[] }
      ? C
      : string

/** What the parser gives for a table: absent options are undefined, flags false. */
export type Values<T extends OptionTable> = {
  -readonly [K in keyof T]: T[K] extends { kind: 'flag' } ? boolean : One<T[K]> | undefined
}

/** Keeps the literal types of choices. */
export const defineOptions = <const T extends OptionTable>(table: T): T => table

export const flagOf = (key: string): string => `--${key.replace(/[A-Z]|(?<=[a-z])\d/g, (c) => `-${c.toLowerCase()}`)}`

export interface PositionalDef {
  /** As shown in the usage line, e.g. `PATH...`. */
  usage: string
  min: number
  /** Absent: any number. */
  max?: number
  /** What to say where one is missing. */
  help: string
}

export interface VerbDef<T extends OptionTable> {
  name: string
  summary: string
  /** Two real command lines. */
  examples: readonly string[]
  options: T
  positional?: PositionalDef
  /** Lines below the options, where a verb needs them. */
  notes?: readonly string[]
  /** Whether a device that the environment names matters; it does where this is left out. */
  usesDevice?(options: Values<T>): boolean
}

export const GLOBAL = defineOptions({
  json: { kind: 'flag', help: 'JSON lines on stdout, human text on stderr' },
  quiet: { kind: 'flag', short: '-q', help: 'only the answer, warnings and errors' },
  verbose: { kind: 'flag', short: '-v', help: 'more detail, and the stack of an error; -vv still more' },
  help: { kind: 'flag', short: '-h', help: 'this text' },
})

/** Shared by the verbs that run a model. */
export const ENGINE = defineOptions({
  precision: {
    kind: 'choice',
    value: 'P',
    choices: ['fp32', 'tf32', 'fp16-mixed', 'bf16-mixed'],
    aliases: {
      '32': 'fp32',
      '32-true': 'fp32',
      '16': 'fp16-mixed',
      '16-mixed': 'fp16-mixed',
      fp16: 'fp16-mixed',
      bf16: 'bf16-mixed',
    },
    env: ['EFFNET_PRECISION'],
    shown: 'fp32',
    help: 'fp32, bf16-mixed; tf32, fp16-mixed: GPUs',
  },
  device: { kind: 'text', value: 'D', env: ['EFFNET_DEVICE', 'EFFNET_BACKEND'], shown: 'cpu', help: 'cpu, cuda or cuda:N' },
  threads: {
    kind: 'int',
    value: 'N',
    min: 1,
    max: 256,
    env: ['EFFNET_NUM_THREADS', 'OMP_NUM_THREADS'],
    shown: 'what this container may use',
    help: 'worker threads',
  },
  deterministic: {
    kind: 'flag',
    env: ['EFFNET_DETERMINISTIC'],
    help: 'GPUs: the same kernels each time, unmeasured',
  },
  memoryLimit: {
    kind: 'text',
    value: 'X',
    env: ['EFFNET_MEMORY_LIMIT'],
    shown: 'all',
    form: 'memory limit',
    help: '0.5 or 8GiB of the device’s memory',
    aside: true,
  },
})

export const OPTIMIZER = {
  kind: 'choice',
  value: 'O',
  choices: ['adamw', 'sgd', 'rmsprop', 'rmsprop_tf'],
  help: 'adamw, sgd, rmsprop or rmsprop_tf',
} as const

/** How `--model` and `--weights` are to be read. */
export const COMPAT = defineOptions({
  compat: {
    kind: 'choice',
    value: 'D',
    choices: ['timm', 'torchvision', 'nvidia-tf2', 'nvidia-pytorch'],
    shown: 'as the weights’ names',
    help: 'whose padding, BN, crop and EXIF rule',
  },
})

/** Which weights to run: a checkpoint folder, or a model's name and a file. */
export const WEIGHTS = defineOptions({
  model: { kind: 'text', value: 'NAME', help: 'model name (effnet models list)' },
  weights: { kind: 'text', value: 'FILE', help: 'safetensors file for --model' },
  ...COMPAT,
  checkpoint: { kind: 'text', value: 'DIR', help: 'checkpoint or run folder of effnet train' },
  numClasses: { kind: 'int', value: 'N', min: 1, max: 1_000_000, help: 'classes of the weights, where not the model’s own' },
})

/** How images become the batches of a model that is not trained. */
export const CROPS = defineOptions({
  batchSize: { kind: 'int', value: 'N', min: 1, max: 4096, shown: '32', help: 'images a step' },
  imageSize: { kind: 'int', value: 'N', min: 32, max: 4096, shown: 'the model’s', help: 'side in pixels' },
  cropPct: { kind: 'number', value: 'X', min: 0, above: true, max: 1, shown: 'the model’s', help: 'crop side / short side' },
})

export const EXIF = defineOptions({
  exif: {
    kind: 'choice',
    value: 'on|off',
    choices: ['on', 'off'],
    shown: 'on, or as --compat',
    help: 'rotate as the EXIF tag says',
  },
})

export const DATA_BACKEND = defineOptions({
  dataBackend: {
    kind: 'choice',
    value: 'B',
    choices: ['cpu', 'gpu'],
    shown: 'cpu',
    help: 'where images are decoded: cpu or gpu',
  },
})

export interface RawValue {
  value: string | boolean | string[]
  /** What to name in an error: `--lr` or `EFFNET_SEED`. */
  source: string
}

export interface Parsed {
  raw: Map<string, RawValue>
  positional: string[]
  verbosity: number
}

function commandFor(name: string, table: OptionTable): Command {
  const command = new Command(name)
    .exitOverride()
    .helpOption(false)
    .allowUnknownOption(false)
    .allowExcessArguments(true)
    .showSuggestionAfterError(false)
    .configureOutput({ writeOut: () => {}, writeErr: () => {}, outputError: () => {} })
    .argument('[args...]')
  for (const [key, def] of Object.entries(table)) {
    const value = def.kind === 'flag' ? '' : def.kind === 'text' && def.optional ? ` [${def.value}]` : ` <${def.value}>`
    const option = new Option(`${def.short ? `${def.short}, ` : ''}${flagOf(key)}${value}`)
    if (key === 'verbose') option.argParser((_: string, count: number | undefined) => (count ?? 0) + 1)
    command.addOption(option)
  }
  return command
}

/** Of some verbs, and looked for in others: why those have none. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  '--data-backend': 'leave it out: effnet train and effnet eval alone decode images on a GPU, everything else on the CPU',
}

/** `--treads` -> `--threads N  worker threads`. */
function unknownOption(given: string, verb: string, table: OptionTable): EffnetError {
  const name = given.replace(/=.*$/, '')
  const byFlag = new Map(Object.keys(table).map((key) => [flagOf(key).slice(2), key]))
  const close = name.startsWith('--') ? nearest(name.slice(2), byFlag.keys(), 2) : []
  const meant = close.map((flag) => {
    const def = table[byFlag.get(flag)!]!
    return `--${flag}${def.kind === 'flag' ? '' : ` ${def.value}`}   ${def.help}${def.shown ? ` (default: ${def.shown})` : ''}`
  })
  return new EffnetError('EFF_CONFIG_KEY', `${name} is not an option of effnet ${verb}`, {
    hint:
      ELSEWHERE[name] ?? (meant.length > 0 ? `did you mean ${meant.join('\n  or ')}` : `effnet ${verb} --help lists the options`),
    details: { option: name, verb, nearest: close.map((c) => `--${c}`) },
  })
}

function noValue(flag: string, verb: string, table: OptionTable): EffnetError {
  const def = Object.entries(table).find(([key]) => flagOf(key) === flag)?.[1]
  return new EffnetError('EFF_CONFIG_VALUE', `${flag} needs a value`, {
    hint: def && def.kind !== 'flag' ? `${flag} ${def.value}   ${def.help}` : `effnet ${verb} --help`,
  })
}

const emptyValue = (flag: string, { value, help }: TextOption): EffnetError =>
  new EffnetError('EFF_CONFIG_VALUE', `${flag}: the value is empty`, { hint: `${flag} ${value}   ${help}` })

function fromCommander(error: CommanderError, argv: readonly string[], verb: string, table: OptionTable): EffnetError {
  const quoted = /'([^']+)'/.exec(error.message)?.[1] ?? ''
  if (error.code === 'commander.unknownOption') {
    return unknownOption(argv.find((a) => a.replace(/=.*$/, '') === quoted) ?? quoted, verb, table)
  }
  if (error.code === 'commander.optionMissingArgument') return noValue(/--[a-z0-9-]+/.exec(quoted)?.[0] ?? quoted, verb, table)
  return new EffnetError('EFF_CONFIG_KEY', error.message.replace(/^error: /, ''), { hint: `effnet ${verb} --help` })
}

/** OpenMP's variable may have a number for each level of nesting; threads here are one level. */
const fromEnv = (name: string, value: string): string => (name === 'OMP_NUM_THREADS' ? value.replace(/,.*$/s, '') : value)

/** Splits the words of a command line by a table of options, and adds what the environment says. Values are still text. */
export function parseWords(argv: readonly string[], verb: string, table: OptionTable, env: Io['env']): Parsed {
  const all: OptionTable = { ...table, ...GLOBAL }
  const command = commandFor(verb, all)
  try {
    command.parse(argv as string[], { from: 'user' })
  } catch (error) {
    if (error instanceof CommanderError) throw fromCommander(error, argv, verb, all)
    throw error
  }
  const given = command.opts<Record<string, string | boolean | string[] | number>>()
  const raw = new Map<string, RawValue>()
  // `--model --json`: an option is never a value.
  const flags = new Set(Object.keys(all).map(flagOf))
  let verbosity = 0
  for (const [key, def] of Object.entries(all)) {
    const value = given[key]
    if (typeof value === 'string' && flags.has(value.replace(/=.*$/, ''))) throw noValue(flagOf(key), verb, all)
    if (key === 'verbose') {
      verbosity = typeof value === 'number' ? value : 0
    } else if (value !== undefined && typeof value !== 'number') {
      // `--resume=$RUN` with RUN unset is not `--resume`.
      if (value === '' && def.kind === 'text' && def.optional) throw emptyValue(flagOf(key), def)
      raw.set(key, { value: def.kind === 'text' && value === true ? '' : value, source: flagOf(key) })
    } else {
      const name = def.env?.find((n) => env[n] !== undefined && env[n] !== '')
      if (name !== undefined) raw.set(key, { value: fromEnv(name, env[name]!), source: name })
    }
  }
  return { raw, positional: command.args, verbosity }
}
