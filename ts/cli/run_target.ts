/** Where a run goes and what it continues: `--out` and `--resume [PATH]`. */
import { constants, existsSync, readFileSync, statSync } from 'node:fs'
import { access, mkdir, rm, symlink } from 'node:fs/promises'
import path from 'node:path'
import { EffnetError } from '../errors.js'
import { TRAIN, type TrainValues } from './train_options.js'

export interface RunTarget {
  /** The options, those not given taken from the run that is continued. */
  options: TrainValues
  /** For `fit`: 'auto', a path, or undefined for a new run. */
  resume: string | undefined
  /** Where the run folder will lie. Of a default one the name is not settled; nothing is made. */
  planned(model: string): string
  /** The run folder; a default one is made now, named after the model and the time, and linked as `latest`. */
  outDir(model: string): Promise<string>
}

/** The run folder of a path given to --resume: the folder itself, or the one whose `checkpoints/` it lies in. */
function runOf(target: string): string | undefined {
  const resolved = path.resolve(target)
  if (existsSync(path.join(resolved, 'checkpoints'))) return resolved
  const parent = path.dirname(resolved)
  return path.basename(parent) === 'checkpoints' ? path.dirname(parent) : undefined
}

/** The options that a run was begun with. @throws EFF_CKPT_CORRUPT; EFF_CONFIG_VALUE where they are not those of a command line */
async function readConfig(file: string): Promise<Record<string, unknown>> {
  const { parseYaml } = await import('../train/yaml.js')
  const kept = await parseYaml(file, readFileSync(file, 'utf8'))
  // A command line has data always; a program gives datasets, which no file holds.
  if (Object.keys(kept).length > 0 && !('data' in kept)) {
    throw new EffnetError(
      'EFF_CONFIG_VALUE',
      `${path.dirname(file)}: this run was begun by a program, whose options are other ones`,
      {
        hint: "go on with it there: trainer.fit({ ..., resume: 'last' }); or begin another run from its model.safetensors with --weights",
      },
    )
  }
  return kept
}

/** What `--resume PATH` may name: a run, or a checkpoint that may lie anywhere. */
async function checkResume(given: string): Promise<void> {
  const { MANIFEST } = await import('../train/checkpoint_folder.js')
  const resolved = path.resolve(given)
  const mend = 'name a run folder or one of its checkpoints, e.g. --resume runs/first/checkpoints/last'
  if (!existsSync(resolved)) throw new EffnetError('EFF_CKPT_MISSING', `--resume ${given}: no such folder`, { hint: mend })
  if (existsSync(path.join(resolved, 'checkpoints')) || existsSync(path.join(resolved, MANIFEST))) return
  // A checkpoint that is not whole: what is wrong with it is said when it is read.
  if (runOf(given) !== undefined && statSync(resolved).isDirectory()) return
  const parent = path.dirname(resolved)
  const near = path.basename(resolved) === 'checkpoints' || existsSync(path.join(parent, MANIFEST)) ? parent : undefined
  throw new EffnetError('EFF_CKPT_MISSING', `--resume ${given}: this is no run and no checkpoint`, {
    hint: near === undefined ? mend : `--resume ${path.join(path.dirname(given), '.')}`,
  })
}

/** What config.yaml of a run says for options that this command line leaves out. */
async function fromConfig(options: TrainValues, runDir: string): Promise<TrainValues> {
  const file = path.join(runDir, 'config.yaml')
  if (!existsSync(file)) return options
  const kept = await readConfig(file)
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

const planned = (model: string): string => path.resolve('runs/classify', model)

/** False where there is one: two runs that begin at once must not share a folder. */
const makeFolder = (dir: string): Promise<boolean> =>
  mkdir(dir).then(
    () => true,
    (cause: NodeJS.ErrnoException) => {
      if (cause.code === 'EEXIST') return false
      throw cause
    },
  )

async function newRun(model: string): Promise<string> {
  const first = `${planned(model)}-${stamp(new Date())}`
  const parent = path.dirname(first)
  const { ioError, makeFolders } = await import('../train/files.js')
  let dir = first
  try {
    await makeFolders(parent)
    for (let n = 2; !(await makeFolder(dir)); n++) dir = `${first}-${n}`
  } catch (cause) {
    throw ioError(cause, dir)
  }
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

/** The given folder, or a default one. */
const folder = (given: string | undefined): Pick<RunTarget, 'planned' | 'outDir'> => ({
  planned: (model) => (given === undefined ? planned(model) : path.resolve(given)),
  outDir: async (model) => (given === undefined ? newRun(model) : path.resolve(given)),
})

export async function runTarget(given: TrainValues): Promise<RunTarget> {
  const { out, resume } = given
  if (out !== undefined && existsSync(out) && !statSync(out).isDirectory()) {
    throw new EffnetError('EFF_RUN_EXISTS', `--out ${out}: this is a file`, {
      hint: 'give a folder, or a path that does not exist yet',
    })
  }
  if (resume === undefined) return { options: given, resume: undefined, ...folder(out) }
  if (resume === '') {
    if (out === undefined) {
      throw new EffnetError('EFF_CONFIG_VALUE', '--resume needs to know which run to go on with', {
        hint: '--resume PATH, or --out DIR --resume',
      })
    }
    return { options: await fromConfig(given, path.resolve(out)), resume: 'auto', ...folder(out) }
  }
  await checkResume(resume)
  const run = runOf(resume)
  const options = run === undefined ? given : await fromConfig(given, run)
  return { options, resume: path.resolve(resume), ...folder(out ?? run) }
}
