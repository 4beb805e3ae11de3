/** The command line as a process of its own, from source. */
import { type ChildProcess, spawn } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const entry = path.resolve(fileURLToPath(import.meta.url), '../entry.ts')

export interface Spawned {
  child: ChildProcess
  /** Settles when stdout has a line that matches. */
  line(pattern: RegExp): Promise<string>
  done: Promise<{ code: number | null; signal: NodeJS.Signals | null; stdout: string; stderr: string }>
}

export function spawnEffnet(argv: readonly string[], env: Record<string, string> = {}): Spawned {
  const child = spawn(process.execPath, ['--import', 'tsx', entry, ...argv], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let stdout = ''
  let stderr = ''
  const watchers: { pattern: RegExp; resolve: (line: string) => void }[] = []
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text
    for (const watcher of [...watchers]) {
      const found = stdout.split('\n').find((l) => watcher.pattern.test(l))
      if (found === undefined) continue
      watchers.splice(watchers.indexOf(watcher), 1)
      watcher.resolve(found)
    }
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text
  })
  const done = new Promise<Awaited<Spawned['done']>>((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }))
  })
  return {
    child,
    line: (pattern) =>
      new Promise((resolve, reject) => {
        watchers.push({ pattern, resolve })
        void done.then(() => reject(new Error(`ended without ${pattern}:\n${stdout}\n${stderr}`)))
      }),
    done,
  }
}
