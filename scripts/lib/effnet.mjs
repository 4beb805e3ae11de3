/** The command line as scripts use it: the checkout's own bin, machine output in, human output through. */
import { spawn } from 'node:child_process'
import path from 'node:path'
import { root, SetupError } from './run.mjs'

const bin = path.join(root, 'bin/effnet.mjs')

/**
 * Runs `effnet ...args --json`; resolves to {code, signal, lines}, the parsed stdout. stderr goes through unless `quiet`, where
 * it is returned as text. `onSpawn` gets the child (to kill it).
 */
export function effnetJson(args, { quiet = false, env, onSpawn } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [bin, ...args, '--json'], {
      cwd: root,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', quiet ? 'pipe' : 'inherit'],
    })
    let out = ''
    let text = ''
    child.stdout.on('data', (d) => {
      out += d
    })
    child.stderr?.on('data', (d) => {
      text += d
    })
    child.on('error', reject)
    child.on('close', (code, signal) => {
      try {
        const lines = out.split('\n').filter(Boolean)
        resolve({ code, signal, stderr: text, lines: lines.map((l) => JSON.parse(l)) })
      } catch (e) {
        reject(new Error(`effnet ${args[0]} printed something that is not JSON: ${e.message}\n${out.slice(0, 500)}`))
      }
    })
    onSpawn?.(child)
  })
}

/** The same, but a non-zero exit is an error. */
export async function effnetOk(args, options) {
  const r = await effnetJson(args, options)
  if (r.code !== 0) {
    throw new SetupError(
      `effnet ${args.join(' ')} ended with ${r.signal ?? `exit code ${r.code}`}\n${r.stderr}`.trim(),
      undefined,
      r.code ?? 1,
    )
  }
  return r.lines
}
