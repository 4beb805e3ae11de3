/**
 * After a fault of the GPU nothing of this process can use it. Another process goes on from the last checkpoint; it waits after every
 * op, so that the op at fault is named where the fault comes again.
 */
import { spawn } from 'node:child_process'
import path from 'node:path'
import { EffnetError } from '../errors.js'
import { EXIT } from './exit.js'
import { shown } from './paths_ui.js'
import type { Ui } from './ui.js'

/** Read by native/cuda/executable.cc. */
const SYNC = 'EFFNET_CUDA_SYNC'

export const isGpuFault = (error: unknown): error is EffnetError => error instanceof EffnetError && error.code === 'EFF_GPU_FAULT'

/** The other process's exit code; undefined where there is none to start: it would be such a process itself, or has no checkpoint. */
export async function rerun(outDir: string, { json, env, ui }: { json: boolean; env: Env; ui: Ui }): Promise<number | undefined> {
  const { findFolder } = await import('../train/checkpoint_folder.js')
  const checkpoint = path.join(outDir, 'checkpoints/last')
  if (env[SYNC] !== undefined || !(await findFolder(checkpoint))) return undefined
  ui.warn('gpu-fault', `the run goes on from ${shown(checkpoint)} in another process, slowly: it waits for every op (${SYNC}=1)`)
  const argv = [...process.execArgv, process.argv[1]!, 'train', '--resume', outDir, ...(json ? ['--json'] : [])]
  const child = spawn(process.execPath, argv, { stdio: 'inherit', env: { ...env, [SYNC]: '1' } })
  const pass = (signal: NodeJS.Signals): void => void child.kill(signal)
  const signals = ['SIGINT', 'SIGTERM', 'SIGUSR2', 'SIGHUP'] as const
  for (const signal of signals) process.on(signal, pass)
  try {
    return await new Promise<number>((resolve, reject) => {
      child.on('error', reject)
      child.on('close', (code) => resolve(code ?? EXIT.killed))
    })
  } finally {
    for (const signal of signals) process.off(signal, pass)
  }
}

type Env = Readonly<Record<string, string | undefined>>
