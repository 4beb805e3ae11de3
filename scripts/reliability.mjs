#!/usr/bin/env node
/**
 * `npm run reliability`: long series against the command line, on a small copy of the demo images. Each series is random by a
 * printed seed and fails with what to repeat.
 *
 *   kill      kill -9 after each of 200 consecutive steps, then at random moments of `effnet train`, each time resumed: the same
 *             bytes as an undisturbed run
 *   faults    every file operation of a save is killed at, torn, told of a full disk or an I/O error: exit code, resume, same bytes
 *   logs      every write to logs, status and results fails, once or from then on: the run goes on or ends with 74, its weights kept
 *   bits      a flipped bit in every byte of a checkpoint is found and named; a run goes on from the checkpoint before
 *   signals   SIGTERM, SIGINT once and twice, SIGUSR1, SIGUSR2, --max-time at random moments: exit code, status.json, checkpoint
 *   images    damaged JPEGs: an object for each, no crash, exit code 0 or 65
 *   ckpt      checkpoints cut short, overwritten, with bits flipped: `effnet eval` refuses them and names the file
 *   mistakes  what users get wrong, through the installed command: one message, its exit code, time, nothing changed
 *   fuzz      mutated plans and JPEG files, a million of each: accepted or refused, never a crash
 *   headers   mutated JSON headers of safetensors files, a million: loaded as JSON.parse reads them or refused by a rule, none slow
 *   soak      training steps, predictors made and closed: native bytes level, resident memory within 5 %; a leak planted on
 *             purpose, counted or not, is caught by the same run
 *
 *   --short (a sample, as CI runs it)   --only NAME   --rounds N   --seed N
 */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs, promisify } from 'node:util'
import { bits, faults, killEachStep, logs, signals } from './lib/crash_series.mjs'
import { effnetJson, effnetOk } from './lib/effnet.mjs'
import { mistakeSeries } from './lib/mistake_series.mjs'
import { record } from './lib/results.mjs'
import { fail, root, SetupError, say } from './lib/run.mjs'

const { values } = parseArgs({
  options: {
    short: { type: 'boolean', default: false },
    only: { type: 'string', multiple: true },
    rounds: { type: 'string' },
    seed: { type: 'string' },
  },
})
const seed = Number(values.seed ?? Date.now() % 1_000_000)
const work = mkdtempSync(path.join(os.tmpdir(), 'effnet-reliability-'))
const rounds = (short, long) => Number(values.rounds ?? (values.short ? short : long))

/** mulberry32: enough for choosing moments and bytes. */
function randomBy(start) {
  let s = start >>> 0
  return () => {
    s = (s + 0x6d2b79f5) >>> 0
    let t = Math.imul(s ^ (s >>> 15), 1 | s)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}
const random = randomBy(seed)
const pick = (list) => list[Math.floor(random() * list.length)]

/** The first images of a few classes of the demo set. */
function smallData(classes, train, val) {
  const to = path.join(work, 'data')
  for (const split of ['train', 'val']) {
    const from = path.join(root, 'models/demo', split)
    for (const name of readdirSync(from).sort().slice(0, classes)) {
      mkdirSync(path.join(to, split, name), { recursive: true })
      const files = readdirSync(path.join(from, name))
        .sort()
        .slice(0, split === 'train' ? train : val)
      for (const f of files) cpSync(path.join(from, name, f), path.join(to, split, name, f))
    }
  }
  return to
}
let data

const trainArgs = (out) => [
  'train',
  '--data',
  data,
  '--model',
  'efficientnet_b0',
  '--image-size',
  '32',
  '--batch-size',
  '16',
  '--epochs',
  '3',
  '--seed',
  '7',
  '--lr',
  '1e-3',
  '--checkpoint-every',
  '2',
  '--out',
  out,
]
const last = (out) => path.join(out, 'checkpoints/last')
const weightsHash = (out) =>
  createHash('sha256')
    .update(readFileSync(path.join(last(out), 'model.safetensors')))
    .digest('hex')
const expect = (ok, text) => {
  if (!ok) throw new Error(text)
}

/** An undisturbed run, made once: its folder and its duration. */
let reference
async function undisturbed() {
  if (reference) return reference
  const out = path.join(work, 'reference')
  const begin = performance.now()
  await effnetOk(trainArgs(out), { quiet: true })
  reference = { out, ms: performance.now() - begin, hash: weightsHash(out) }
  return reference
}

async function disturbed(out, signal, afterMs, extra = []) {
  const stop = new AbortController()
  const result = await effnetJson([...trainArgs(out), ...extra], {
    quiet: true,
    onSpawn: (child) => {
      sleep(afterMs, undefined, { signal: stop.signal }).then(
        () => child.kill(signal),
        () => {},
      )
    },
  })
  stop.abort()
  return result
}

/** What the series of scripts/lib/crash_series.mjs share. */
const crash = () => ({ work, data, short: values.short, random })

/** A series of scripts/lib/engine_series.mjs in a process of its own. */
async function engineSeries(name, count, env = {}) {
  const args = ['--expose-gc', path.join(root, 'scripts/lib/engine_series.mjs'), name, String(count), String(seed)]
  const options = { cwd: root, maxBuffer: 1 << 24, env: { ...process.env, ...env } }
  const { stdout } = await promisify(execFile)(process.execPath, args, options)
  return stdout.trim()
}

const series = {
  fuzz: async (report) => report(await engineSeries('fuzz', rounds(2000, 1_000_000))),
  headers: async (report) => report(await engineSeries('headers', rounds(20_000, 1_000_000))),
  async soak(report) {
    report(await engineSeries('soak', rounds(25, 2000)))
    const leaks = { 'leak:4096': /native arenas went from/, 'leak-rss:8000000': /resident memory grew/ }
    for (const [fault, message] of Object.entries(leaks)) {
      const found = await engineSeries('soak', 15, { EFFNET_FAULT: fault }).then(
        () => 'not noticed',
        (e) => message.exec(e.message)?.[0] ?? e.message,
      )
      expect(message.test(found), `${fault}: ${found}`)
      report(`${fault} a step is caught: ${found}`)
    }
  },

  mistakes: (report) => mistakeSeries(work, values.short, report),

  async kill(report) {
    await killEachStep({ ...crash(), report })
    const { ms, hash } = await undisturbed()
    for (let round = 0; round < rounds(1, 20); round++) {
      const out = path.join(work, `kill-${round}`)
      const moments = []
      for (let attempt = 0; ; attempt++) {
        const at = attempt < 4 ? Math.round(random() * ms * 0.9) : 1e8
        moments.push(at)
        const r = await disturbed(out, 'SIGKILL', at, ['--resume'])
        if (r.signal !== 'SIGKILL') {
          expect(r.code === 0, `kill at ${moments} ms: exit code ${r.code}\n${r.stderr.slice(-2000)}`)
          break
        }
      }
      expect(weightsHash(out) === hash, `kill at ${moments} ms: other weights than the undisturbed run`)
      report(`killed at ${moments.slice(0, -1).join(', ') || 'no'} ms, same weights`)
    }
  },

  faults: (report) => faults({ ...crash(), report }),
  logs: (report) => logs({ ...crash(), report }),
  bits: (report) => bits({ ...crash(), report }),
  signals: async (report) => signals({ ...crash(), rounds: rounds(8, 56), train: trainArgs, whole: await undisturbed(), report }),

  async images(report) {
    const { out } = await undisturbed()
    const folder = path.join(data, 'val')
    const originals = readdirSync(folder).flatMap((c) => readdirSync(path.join(folder, c)).map((f) => path.join(folder, c, f)))
    for (let round = 0; round < rounds(2, 100); round++) {
      const to = path.join(work, `images-${round}`)
      mkdirSync(to)
      for (let i = 0; i < 40; i++)
        writeFileSync(path.join(to, `${String(i).padStart(2, '0')}.jpg`), damage(readFileSync(pick(originals))))
      const r = await effnetJson(['predict', '--checkpoint', last(out), to], { quiet: true })
      const bad = r.lines.filter((l) => l.error).length
      expect(r.code === (bad ? 65 : 0), `${to}: exit code ${r.code ?? r.signal} with ${bad} errors\n${r.stderr.slice(-2000)}`)
      expect(r.lines.length === 40, `${to}: ${r.lines.length} objects for 40 images`)
      expect(
        r.lines.every((l) => l.error?.code?.startsWith('EFF_') || l.topk?.every((t) => Number.isFinite(t.score))),
        `${to}: an object is neither error nor prediction`,
      )
      rmSync(to, { recursive: true })
      report(`40 damaged images: ${bad} refused, ${40 - bad} read`)
    }
  },

  async ckpt(report) {
    const { out } = await undisturbed()
    for (let round = 0; round < rounds(4, 200); round++) {
      const to = path.join(work, `ckpt-${round}`)
      cpSync(last(out), to, { recursive: true, dereference: true })
      const name = pick(readdirSync(to))
      writeFileSync(path.join(to, name), damage(readFileSync(path.join(to, name))))
      const r = await effnetJson(['eval', '--data', data, '--checkpoint', to], { quiet: true })
      const error = r.lines.find((l) => l.error)?.error
      expect(
        r.code === 65 && error?.code === 'EFF_CKPT_CORRUPT' && error.message.includes(name),
        `${to} (${name}): exit code ${r.code ?? r.signal}, ${error?.message}\n${r.stderr.slice(-2000)}`,
      )
      rmSync(to, { recursive: true })
      report(`damaged ${name}: ${error.code}`)
    }
  },
}

/** Truncates, flips bits, overwrites or cuts a piece out; the result always differs. */
function damage(bytes) {
  const kind = pick(['truncate', 'flip', 'overwrite', 'cut'])
  const at = Math.floor(random() * (bytes.length - 1))
  if (kind === 'truncate') return bytes.subarray(0, at)
  const length = 1 + Math.floor(random() * Math.min(64, bytes.length - at - 1))
  if (kind === 'cut') return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + length)])
  const copy = Buffer.from(bytes)
  for (let i = 0; i < (kind === 'flip' ? 1 : length); i++) copy[at + i] ^= 1 + Math.floor(random() * 255)
  return copy
}

async function main() {
  const wanted = values.only ?? Object.keys(series)
  const unknown = wanted.find((s) => !(s in series))
  if (unknown) throw new SetupError(`--only ${unknown}: there are ${Object.keys(series).join(', ')}`, undefined, 64)
  for (const needed of ['dist', 'models/demo']) {
    if (!existsSync(path.join(root, needed))) throw new SetupError(`${needed} is missing`, 'npm run setup')
  }
  data = smallData(3, 32, 8)
  say('series', `seed ${seed}, work in ${work}`)
  const counts = { passed: 0, failed: 0, failures: [] }
  for (const name of wanted) {
    try {
      await series[name]((text) => say(name, text))
      counts.passed++
    } catch (e) {
      counts.failed++
      counts.failures.push(`${name} (--seed ${seed}): ${e.message.split('\n')[0]}`)
      process.stderr.write(`${name} failed (--only ${name} --seed ${seed}): ${e.message}\n`)
    }
  }
  if (values.short) record('reliability', counts)
  say('series', `${counts.passed} passed, ${counts.failed} failed`)
  if (counts.failed === 0) rmSync(work, { recursive: true, force: true })
  process.exitCode = counts.failed === 0 ? 0 : 1
}

main().catch(fail)
