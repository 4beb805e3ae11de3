/** Values of options through zod: every option is text from a command line or the environment until it has passed here. */
import { z } from 'zod'
import { EffnetError } from '../errors.js'
import { nearest } from '../nearest.js'
import { limitProblem } from '../runtime/memory_limit.js'
import type { OptionDef, OptionTable, RawValue, Values } from './options.js'

/** The accepted form in words: "a whole number from 1 to 1024". */
export function acceptedForm(def: OptionDef): string {
  if (def.kind === 'flag') return '1 or 0'
  if (def.kind === 'text') return 'a text'
  if (def.kind === 'choice') {
    const aliases = Object.keys(def.aliases ?? {})
    return `${def.choices.join(', ')}${aliases.length > 0 ? ` (or ${aliases.join(', ')})` : ''}`
  }
  const noun = def.kind === 'int' ? 'a whole number' : 'a number'
  if (def.min !== undefined && def.max !== undefined && !def.above) return `${noun} from ${def.min} to ${def.max}`
  const parts: string[] = []
  if (def.min !== undefined) parts.push(def.above ? `above ${def.min}` : `of at least ${def.min}`)
  if (def.max !== undefined) parts.push(`at most ${def.max}`)
  return [noun, parts.join(' and ')].filter(Boolean).join(' ')
}

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i
const TRUE = ['1', 'true', 'yes', 'on']
const FALSE = ['0', 'false', 'no', 'off']

function schemaOf(def: OptionDef): z.ZodType<unknown, unknown> {
  switch (def.kind) {
    case 'flag':
      return z.union([
        z.boolean(),
        z
          .string()
          .toLowerCase()
          .refine((s) => TRUE.includes(s) || FALSE.includes(s))
          .transform((s) => TRUE.includes(s)),
      ])
    case 'int':
    case 'number': {
      let range = z.number()
      if (def.kind === 'int') range = range.int()
      if (def.min !== undefined) range = def.above ? range.gt(def.min) : range.gte(def.min)
      if (def.max !== undefined) range = range.lte(def.max)
      return z.string().trim().regex(NUMBER).transform(Number).pipe(range)
    }
    case 'choice':
      return z
        .string()
        .trim()
        .toLowerCase()
        .transform((s) => def.aliases?.[s] ?? s)
        .pipe(z.enum(def.choices as [string, ...string[]]))
    case 'text':
      return def.optional ? z.string() : z.string().min(1)
  }
}

function invalid(key: string, def: OptionDef, raw: RawValue, problem?: string): EffnetError {
  const given = Array.isArray(raw.value) ? raw.value.join(' ') : String(raw.value)
  const close = def.kind === 'choice' ? nearest(given, def.choices, 1) : []
  const form = def.kind !== 'text' ? acceptedForm(def) : problem === undefined ? `${def.help}; it must not be empty` : def.help
  return new EffnetError(
    'EFF_CONFIG_VALUE',
    `${raw.source}: '${given}' is not ${def.kind === 'choice' ? 'a choice' : 'accepted'}${problem === undefined ? '' : `: ${problem}`}`,
    {
      hint: `${raw.source}${raw.source.startsWith('--') ? ' ' : '='}${close[0] ?? ('value' in def ? def.value : '1')}   ${form}`,
      details: { option: key, value: given, accepted: form },
    },
  )
}

/** Turns raw words into values of the table's types. Throws EFF_CONFIG_VALUE with the accepted form. */
export function validate<T extends OptionTable>(table: T, raw: ReadonlyMap<string, RawValue>): Values<T> {
  const out: Record<string, unknown> = {}
  for (const [key, def] of Object.entries(table)) {
    const word = raw.get(key)
    if (word === undefined) {
      out[key] = def.kind === 'flag' ? false : undefined
      continue
    }
    const result = schemaOf(def).safeParse(word.value)
    if (!result.success) throw invalid(key, def, word)
    const problem = def.kind === 'text' && def.form === 'memory limit' ? limitProblem(String(result.data)) : undefined
    if (problem !== undefined) throw invalid(key, def, word, problem)
    out[key] = result.data
  }
  return out as Values<T>
}
