/** Child processes and progress lines of the scripts. Plain Node: this runs before anything is installed. */
import { spawn, spawnSync } from 'node:child_process'
import { createWriteStream, mkdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..')
export const cache = path.join(root, '.cache')

/** A failure with its mend and exit code; printed without a stack. */
export class SetupError extends Error {
  constructor(message, mend, exitCode = 1) {
    super(message)
    this.mend = mend
    this.exitCode = exitCode
  }
}

const started = performance.now()
export const elapsed = () => `${((performance.now() - started) / 1000).toFixed(1)} s`

/** One progress line: what, and seconds since the start. */
export function say(topic, text) {
  process.stdout.write(`${topic.padEnd(9)}${text}  (${elapsed()})\n`)
}

/** Runs a command to its end and returns {status, stdout, stderr}; never throws. */
export function probe(command, args, options = {}) {
  const r = spawnSync(command, args, { encoding: 'utf8', cwd: root, ...options })
  return { status: r.status ?? 127, stdout: r.stdout ?? '', stderr: r.stderr ?? '' }
}

/**
 * Runs a long command with its output in .cache/logs/<topic>.log and a sign of life every `everyMs`: the last line it
 * printed. On failure the end of the log is shown and a SetupError thrown.
 */
export function run(topic, command, args, { env, cwd = root, mend, exitCode = 1, everyMs = 20_000 } = {}) {
  mkdirSync(path.join(cache, 'logs'), { recursive: true })
  const logFile = path.join(cache, 'logs', `${topic}.log`)
  const log = createWriteStream(logFile)
  log.write(`$ ${command} ${args.join(' ')}\n`)
  let last = ''
  const beat = setInterval(() => last && say(topic, `... ${last.slice(0, 90)}`), everyMs)
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd, env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] })
    const take = (chunk) => {
      log.write(chunk)
      last = chunk.toString().trimEnd().split('\n').pop() ?? last
    }
    child.stdout.on('data', take)
    child.stderr.on('data', take)
    const end = (problem) => {
      clearInterval(beat)
      log.end(() => {
        if (!problem) return resolve()
        const tail = readFileSync(logFile, 'utf8').trimEnd().split('\n').slice(-40).join('\n')
        process.stderr.write(`${tail}\n`)
        reject(new SetupError(`${topic}: ${problem} (whole log: ${path.relative(root, logFile)})`, mend, exitCode))
      })
    }
    child.on('error', (e) => end(`${command} did not start: ${e.message}`))
    child.on('close', (code, signal) => end(code === 0 ? '' : `${command} ended with ${signal ?? `exit code ${code}`}`))
  })
}

/** Runs a command with our own stdio; resolves to its exit code (128 + n for a signal). */
export function runThrough(command, args, { env, cwd = root, input = 'ignore' } = {}) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { cwd, env: { ...process.env, ...env }, stdio: [input, 'inherit', 'inherit'] })
    child.on('error', (e) => {
      process.stderr.write(`${command}: ${e.message}\n`)
      resolve(127)
    })
    child.on('close', (code, signal) => resolve(code ?? (signal ? 128 : 1)))
  })
}

/** Ends a script: prints a SetupError as message and mend, anything else with its stack. */
export function fail(error) {
  if (error instanceof SetupError) {
    process.stderr.write(`${error.message}\n`)
    if (error.mend) process.stderr.write(`  Mend: ${error.mend}\n`)
    process.exitCode = error.exitCode
  } else {
    process.stderr.write(`${error?.stack ?? error}\n`)
    process.exitCode = 1
  }
}
