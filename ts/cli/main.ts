/**
 * The command line: finds the verb, parses, validates, runs, turns errors into text and exit codes. A verb's module, the schema
 * library and the engine are loaded when they are needed, so that `--help` is immediate.
 */
import { EffnetError } from '../errors.js'
import { nearest } from '../nearest.js'
import type { Verb } from './call.js'
import { describeError, errorObject, formatError } from './errors_ui.js'
import { EXIT } from './exit.js'
import { mainHelp, verbHelp } from './help.js'
import { type Io, processIo } from './io.js'
import type { RawValue } from './options.js'
import { programName } from './program.js'
import { Ui } from './ui.js'

const VERBS: Record<string, { summary: string; load: () => Promise<{ verb: Verb }> }> = {
  train: { summary: 'train or fine-tune on a folder of images', load: () => import('./train.js') },
  eval: { summary: 'accuracy of a checkpoint or of weights on a folder of images', load: () => import('./eval.js') },
  predict: { summary: 'name what is on images', load: () => import('./predict.js') },
  models: { summary: 'list the models, or show one', load: () => import('./models.js') },
  bench: { summary: 'speed of training, inference or the input pipeline', load: () => import('./bench.js') },
  doctor: { summary: 'check this machine and tell the mend of what is missing', load: () => import('./doctor.js') },
  version: { summary: 'versions of the package and its libraries', load: () => import('./version.js') },
}

const listed = Object.entries(VERBS).map(([name, { summary }]) => ({ name, summary }))

function unknownVerb(given: string): EffnetError {
  const close = nearest(given, Object.keys(VERBS), 1)[0]
  return new EffnetError('EFF_CONFIG_KEY', `'${given}' is not a verb of effnet`, {
    hint: close ? `did you mean effnet ${close}   ${VERBS[close]!.summary}` : `one of ${Object.keys(VERBS).join(', ')}`,
    details: { verb: given },
  })
}

/** Flags that matter before the words are parsed: an error in parsing is already told the right way. */
const early = (argv: readonly string[], io: Io): Ui =>
  new Ui(io, {
    json: argv.includes('--json'),
    quiet: argv.includes('--quiet') || argv.includes('-q'),
    verbosity: argv.includes('-vv') ? 2 : argv.includes('-v') || argv.includes('--verbose') ? 1 : 0,
  })

/** The mend of a device that cannot be had, for who named it by a variable: other mends than the CPU stay. */
export function mendOfDevice(hint: string | undefined, source: string): string {
  const cpu = `${source}=cpu, or --device cpu`
  if (hint === undefined) return cpu
  if (hint.includes("device 'cpu'")) return hint.replace("device 'cpu'", cpu)
  return hint.includes("'cpu'") ? cpu : `${hint}; or ${cpu}`
}

/** Who set a variable once is told which one it was. */
async function checkDeviceOf({ value, source }: RawValue): Promise<void> {
  const { checkDeviceOption } = await import('./model_source.js')
  try {
    await checkDeviceOption(String(value))
  } catch (cause) {
    if (!(cause instanceof EffnetError)) throw cause
    throw new EffnetError(cause.code, `${source}=${value}: ${cause.message}`, {
      hint: mendOfDevice(cause.hint, source),
      details: cause.details,
      cause,
    })
  }
}

async function runVerb(name: string, argv: readonly string[], io: Io): Promise<number> {
  const entry = Object.hasOwn(VERBS, name) ? VERBS[name] : undefined
  if (!entry) throw unknownVerb(name)
  const { verb } = await entry.load()
  const { def } = verb
  const words = argv.includes('--') ? argv.slice(0, argv.indexOf('--')) : argv
  if (words.some((a) => a === '--help' || a === '-h')) {
    io.stdout.write(verbHelp(def))
    return EXIT.ok
  }
  const { GLOBAL, parseWords } = await import('./options.js')
  const parsed = parseWords(argv, name, def.options, io.env)
  const { validate } = await import('./schema.js')
  const common = validate(GLOBAL, parsed.raw)
  const options = validate(def.options, parsed.raw)
  const { min = 0, max = 0 } = def.positional ? { max: Number.POSITIVE_INFINITY, ...def.positional } : {}
  if (parsed.positional.length < min) {
    throw new EffnetError('EFF_CONFIG_VALUE', `effnet ${name} needs ${def.positional!.usage}`, { hint: def.positional!.help })
  }
  if (parsed.positional.length > max) {
    const extra = parsed.positional[max]!
    throw new EffnetError('EFF_CONFIG_KEY', `'${extra}' is one word too many for effnet ${name}`, {
      hint: `every setting is an option: ${def.examples[0]}`,
    })
  }
  const device = parsed.raw.get('device')
  if (device && device.source !== '--device' && (def.usesDevice?.(options) ?? true)) await checkDeviceOf(device)
  const ui = new Ui(io, { json: common.json, quiet: common.quiet, verbosity: parsed.verbosity })
  try {
    const given = new Set([...parsed.raw].flatMap(([key, { source }]) => (source.startsWith('--') ? [key] : [])))
    return await verb.run({ options, given, args: parsed.positional, io, ui })
  } finally {
    ui.clearLive()
  }
}

/**
 * Runs one command. `argv` is what follows the program's name.
 * Never throws and never ends the process: the exit code is returned.
 */
export async function main(argv: readonly string[], io: Io = processIo()): Promise<number> {
  const [first, ...rest] = argv
  try {
    if (first === undefined) {
      io.stderr.write(mainHelp(listed))
      return EXIT.usage
    }
    if (first === '--help' || first === '-h' || (first === 'help' && rest.length === 0)) {
      io.stdout.write(mainHelp(listed))
      return EXIT.ok
    }
    if (first === 'help') return await runVerb(rest[0]!, ['--help'], io)
    if (first === '--version' || first === '-V') {
      const { packageVersion } = await import('../version.js')
      io.stdout.write(`${packageVersion()}\n`)
      return EXIT.ok
    }
    const code = await runVerb(first, rest, io)
    // A failed write is reported after it returned.
    await new Promise((resolve) => setImmediate(resolve))
    const cause = io.stdout.failure
    if (cause) {
      throw new EffnetError('EFF_IO', `standard output could not be written: ${cause.message}`, {
        hint: 'free space where it is redirected to, and run again',
        cause,
      })
    }
    return code
  } catch (thrown) {
    const ui = early(argv, io)
    const described = describeError(thrown, programName(io.env), Object.hasOwn(VERBS, first ?? '') ? first : undefined)
    ui.error(formatError(described, ui.paint, ui.verbosity > 0))
    ui.object({ error: errorObject(described) })
    return described.exitCode
  }
}
