/**
 * A contender: a process that stays alive and measures when asked, so that windows of all contenders can alternate and what a
 * peer compiles or binds is paid once. One JSON line each: it says {"ready": {versions}}, or {"error"} and ends; then for
 * every line of stdin, a number of steps, it runs them and says {"images", "seconds", "peak_bytes"}. It ends with its stdin.
 */
import { spawn } from 'node:child_process'
import { createWriteStream, mkdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { cache } from '../../scripts/lib/run.mjs'

export class Contender {
  /** `command` is [program, ...args]. Its stderr goes to .cache/logs/bench-<name>.log. */
  constructor(name, command, env) {
    this.name = name
    const logs = path.join(cache, 'logs')
    mkdirSync(logs, { recursive: true })
    this.logFile = path.join(logs, `bench-${name}.log`)
    const log = createWriteStream(this.logFile)
    this.child = spawn(command[0], command.slice(1), { env: { ...process.env, ...env }, stdio: ['pipe', 'pipe', 'pipe'] })
    this.child.stderr.pipe(log)
    this.child.stdin.on('error', () => {}) // it ended: the next answer says so
    this.ended = new Promise((resolve) => {
      this.child.on('error', (e) => resolve(e.message))
      this.child.on('close', (code, signal) => resolve(signal ?? `exit code ${code}`))
    })
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]()
    this.peakBytes = 0
    this.windows = []
  }

  async answer() {
    for (;;) {
      const { value, done } = await this.lines.next()
      if (done) {
        const how = await this.ended
        const tail = readFileSync(this.logFile, 'utf8').trimEnd().split('\n').slice(-3).join(' | ')
        throw new Error(`ended with ${how}: ${tail}`)
      }
      if (!value.startsWith('{')) continue
      const message = JSON.parse(value)
      if (message.error) throw new Error(message.error.split('\n').slice(0, 3).join(' | '))
      return message
    }
  }

  /** Waits for its start, then finds how many steps fill a window. */
  async ready(windowSeconds) {
    this.versions = (await this.answer()).ready
    // A first step tells little where work was done ahead: more, until they take a fifth of a window.
    let steps = 1
    let { seconds } = await this.run(steps)
    while (seconds < windowSeconds / 5) {
      steps *= Math.min(16, Math.ceil(windowSeconds / 4 / seconds))
      seconds = (await this.run(steps)).seconds
    }
    this.steps = Math.max(1, Math.round((windowSeconds * steps) / seconds))
    this.windows = []
  }

  async run(steps) {
    this.child.stdin.write(`${steps}\n`)
    const window = await this.answer()
    this.peakBytes = Math.max(this.peakBytes, window.peak_bytes)
    return window
  }

  /** One window; resolves to images/s. */
  async window() {
    const { images, seconds } = await this.run(this.steps)
    this.windows.push(images / seconds)
    return images / seconds
  }

  async close() {
    this.child.stdin.end()
    const timer = setTimeout(() => this.child.kill('SIGKILL'), 10_000)
    await this.ended
    clearTimeout(timer)
  }
}
