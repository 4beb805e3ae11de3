/**
 * After a fault of the GPU nothing of this process can use it, and what it holds there is given back for sure only when it ends. So
 * another program takes its place, with its number, its terminal and its signals: it goes on from the last checkpoint, or begins the run
 * again where there is none yet, and waits after every kernel, so that the op at fault is named where the fault comes again.
 */
import path from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { EffnetError } from '../errors.js'
import type { Io } from './io.js'
import { shown } from './paths_ui.js'
import type { Ui } from './ui.js'

/** Read by native/cuda/executable.cc, which waits for "1" alone. */
const SYNC = 'EFFNET_CUDA_SYNC'

export const isGpuFault = (error: unknown): error is EffnetError => error instanceof EffnetError && error.code === 'EFF_GPU_FAULT'

/** What a run's folder does not keep, because it changes how a run is shown and how fast it is, not what it computes. */
export interface RerunOptions {
  workers: number | undefined
  threads: number | undefined
}

const count = (flag: string, n: number | undefined): string[] => (n === undefined ? [] : [flag, String(n)])

/** The words behind the program's name that go on with a run. */
export const rerunWords = (
  outDir: string,
  { workers, threads }: RerunOptions,
  ui: Pick<Ui, 'json' | 'quiet' | 'verbosity'>,
): string[] => [
  ...['train', '--resume', outDir],
  ...count('--workers', workers),
  ...count('--threads', threads),
  ...(ui.json ? ['--json'] : []),
  ...(ui.quiet ? ['-q'] : []),
  ...(ui.verbosity > 0 ? [`-${'v'.repeat(ui.verbosity)}`] : []),
]

/** Those that begin it again: as it was begun, in the folder that it was given, if it came so far. */
export const restartWords = (argv: readonly string[], outDir: string): string[] =>
  outDir === '' ? [...argv] : [...argv, '--out', outDir]

/** What a rerun goes by of the run that had the fault. */
export interface FaultedRun {
  /** "" where it had none yet. */
  outDir: string
  /** The checkpoint that it was told to begin with, or the run whose checkpoint; undefined where it was told to go on with its own folder's last. */
  from: string | undefined
  /** It has written a checkpoint itself. */
  saved: boolean
}

interface Rerun {
  env: Env
  io: Pick<Io, 'stdout' | 'stderr'>
  ui: Ui
  /** What this process was called with, behind the program's name. */
  argv: readonly string[]
  /** Who was told to end does not begin anew. */
  stopped: () => boolean
}

/** The words that go on with the run, and how that is told. */
async function continuation(
  run: FaultedRun,
  options: RerunOptions,
  { ui, argv }: Rerun,
): Promise<[how: string, words: string[]]> {
  const { outDir, from, saved } = run
  // What lies there is of before: the run was told to begin elsewhere.
  if (from !== undefined && !saved) return [`the run goes on from ${shown(from)} again`, restartWords(argv, outDir)]
  const { findFolder, isCorrupt } = await import('../train/checkpoint_folder.js')
  const checkpoint = path.join(outDir, 'checkpoints/last')
  // Where the last one is damaged the run goes on from the one before it.
  const found = outDir !== '' && (await findFolder(checkpoint).catch((cause) => isCorrupt(cause)))
  return found
    ? [`the run goes on from ${shown(checkpoint)}`, rerunWords(outDir, options, ui)]
    : ['there is no checkpoint yet, so the run begins again', restartWords(argv, outDir)]
}

/**
 * Does not come back where another program takes over. It returns where that would wait for ops as this one did, where the run was
 * told to end meanwhile, or where the program does not start.
 */
export async function rerun(run: FaultedRun, options: RerunOptions, fault: EffnetError, call: Rerun): Promise<void> {
  const { env, io, ui, stopped } = call
  if (env[SYNC] === '1') return
  const [how, words] = await continuation(run, options, call)
  const { binding } = await import('../binding.js')
  // A signal is heard in the turn after it came; no turn lies between the last look and the other program.
  await setImmediate()
  if (stopped()) return
  const message = `${fault.message}; ${how} in a fresh process, slowly: it waits for every kernel (${SYNC}=1)`
  ui.warn('gpu-fault', `${fault.code}  ${message}`)
  ui.object({ event: 'warning', code: 'gpu-fault', message })
  await Promise.all([io.stdout.flushed(), io.stderr.flushed(), setImmediate()])
  if (stopped()) return
  const file = process.execPath
  try {
    binding().replaceProcess(
      file,
      [file, ...process.execArgv, process.argv[1]!, ...words],
      Object.entries({ ...env, [SYNC]: '1' }).flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${value}`])),
    )
  } catch (cause) {
    ui.warn('gpu-fault-rerun', `the fresh process could not be started: ${(cause as Error).message}`)
  }
}

type Env = Readonly<Record<string, string | undefined>>
