/**
 * After a fault of the GPU nothing of this process can use it. Another process goes on from the last checkpoint; it waits after every
 * op, so that the op at fault is named where the fault comes again.
 */
import { spawn } from 'node:child_process'
import { constants } from 'node:os'
import path from 'node:path'
import { EffnetError } from '../errors.js'
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

/** The words behind the program's name. */
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

/** The other process's exit code; undefined where none can be started: it would be such a process itself, or has no checkpoint. */
export async function rerun(
  outDir: string,
  options: RerunOptions,
  { env, ui }: { env: Env; ui: Ui },
): Promise<number | undefined> {
  const { findFolder } = await import('../train/checkpoint_folder.js')
  const checkpoint = path.join(outDir, 'checkpoints/last')
  const found = await findFolder(checkpoint).catch(() => undefined)
  if (env[SYNC] === '1' || !found) return undefined
  ui.warn('gpu-fault', `the run goes on from ${shown(checkpoint)} in another process, slowly: it waits for every op (${SYNC}=1)`)
  const argv = [...process.execArgv, process.argv[1]!, ...rerunWords(outDir, options, ui)]
  try {
    return await runAs(process.execPath, argv, { ...env, [SYNC]: '1' })
  } catch (cause) {
    ui.warn('gpu-fault-rerun', `the other process could not be started: ${(cause as Error).message}`)
    return undefined
  }
}

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGUSR1', 'SIGUSR2', 'SIGHUP'] as const

/**
 * A process in this one's place, on its streams. It leads a process group, so that what a terminal sends comes to it once, from here:
 * two SIGINT would end it without a checkpoint. Its exit code, 128 and the signal's number where one ended it.
 */
export async function runAs(file: string, argv: readonly string[], env: Env): Promise<number> {
  const child = spawn(file, argv, { stdio: 'inherit', env, detached: true })
  const pass = (signal: NodeJS.Signals): void => void child.kill(signal)
  // First of all listeners: one that ends this process must not keep a signal from the other.
  for (const signal of SIGNALS) process.prependListener(signal, pass)
  try {
    return await new Promise<number>((resolve, reject) => {
      child.on('error', reject)
      child.on('close', (code, signal) => resolve(code ?? 128 + constants.signals[signal!]))
    })
  } finally {
    for (const signal of SIGNALS) process.off(signal, pass)
  }
}

type Env = Readonly<Record<string, string | undefined>>
