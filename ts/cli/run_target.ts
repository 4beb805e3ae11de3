/** Where a run goes and what it continues: `--out` and `--resume [PATH]`. */
import { constants, existsSync, readFileSync, statSync } from 'node:fs'
import { access, rm, symlink } from 'node:fs/promises'
import path from 'node:path'
import { EffnetError } from '../errors.js'
import { TRAIN, type TrainValues } from './train_options.js'

export interface RunTarget {
  /** The options, those not given taken from the run that is continued. */
  options: TrainValues
  /** For `fit`: 'auto', a path, or undefined for a new run. */
  resume: string | undefined
  /** The run folder; a default one is named after the model and linked as `latest`. */
  outDir(model: string): Promise<string>
}

/** The run folder of a path given to --resume: the folder itself, or the one whose `checkpoints/` it lies in. */
function runOf(target: string): string | undefined {
  const resolved = path.resolve(target)
  if (existsSync(path.join(resolved, 'checkpoints'))) return resolved
  const parent = path.dirname(resolved)
  return path.basename(parent) === 'checkpoints' ? path.dirname(parent) : undefined
}

/** What config.yaml of a run says for options that this command line leaves out. */
async function fromConfig(options: TrainValues, runDir: string): Promise<TrainValues> {
  const file = path.join(runDir, 'config.yaml')
  if (!existsSync(file)) return options
  const { parse } = await import('yaml')
  const kept = parse(readFileSync(file, 'utf8')) as Record<string, unknown> | null
  if (kept === null || typeof kept !== 'object') return options
  const merged: Record<string, unknown> = { ...options }
  for (const key of Object.keys(TRAIN)) {
    if (key === 'out' || key === 'resume' || key === 'threads' || key === 'workers') continue
    if ((merged[key] === undefined || merged[key] === false) && kept[key] !== undefined) merged[key] = kept[key]
  }
  return merged as TrainValues
}

/**
 * Before data and model are loaded: a folder that holds a run is not overwritten, and one that cannot be made is said now.
 * @throws EFF_RUN_EXISTS, EFF_IO
 */
export async function checkOut(dir: string, resumes: boolean): Promise<void> {
  const [{ RunFolder }, { ioError }] = await Promise.all([import('../train/run_folder.js'), import('../train/files.js')])
  if (!resumes && (await new RunFolder(dir).isRun())) await new RunFolder(dir).open(false)
  let at = dir
  while (!existsSync(at) && path.dirname(at) !== at) at = path.dirname(at)
  try {
    await access(at, constants.W_OK)
  } catch (cause) {
    throw ioError(cause, dir)
  }
}

const stamp = (now: Date): string => {
  const two = (n: number): string => String(n).padStart(2, '0')
  const day = `${now.getFullYear()}${two(now.getMonth() + 1)}${two(now.getDate())}`
  return `${day}-${two(now.getHours())}${two(now.getMinutes())}${two(now.getSeconds())}`
}

async function newRun(model: string): Promise<string> {
  const parent = path.resolve('runs/classify')
  const name = `${model}-${stamp(new Date())}`
  let dir = path.join(parent, name)
  for (let n = 2; existsSync(dir); n++) dir = path.join(parent, `${name}-${n}`)
  const { makeFolders } = await import('../train/files.js')
  await makeFolders(parent)
  const link = path.join(parent, 'latest')
  try {
    await rm(link, { force: true })
    await symlink(path.basename(dir), link)
  } catch (error) {
    // A convenience: some file systems have no links, and a folder of that name is the user's.
    if ((error as NodeJS.ErrnoException).code === undefined) throw error
  }
  return dir
}

export async function runTarget(given: TrainValues): Promise<RunTarget> {
  const { out, resume } = given
  if (out !== undefined && existsSync(out) && !statSync(out).isDirectory()) {
    throw new EffnetError('EFF_RUN_EXISTS', `--out ${out}: this is a file`, {
      hint: 'give a folder, or a path that does not exist yet',
    })
  }
  if (resume === undefined) {
    return { options: given, resume: undefined, outDir: async (model) => (out === undefined ? newRun(model) : path.resolve(out)) }
  }
  if (resume === '') {
    if (out === undefined) {
      throw new EffnetError('EFF_CONFIG_VALUE', '--resume needs to know which run to go on with', {
        hint: '--resume PATH, or --out DIR --resume',
      })
    }
    return { options: await fromConfig(given, path.resolve(out)), resume: 'auto', outDir: async () => path.resolve(out) }
  }
  if (!existsSync(resume)) {
    throw new EffnetError('EFF_CKPT_MISSING', `--resume ${resume}: no such folder`, {
      hint: 'name a run folder or one of its checkpoints, e.g. --resume runs/first/checkpoints/last',
    })
  }
  const run = runOf(resume)
  const options = run === undefined ? given : await fromConfig(given, run)
  return {
    options,
    resume: path.resolve(resume),
    outDir: async (model) => (out === undefined ? (run ?? newRun(model)) : path.resolve(out)),
  }
}
