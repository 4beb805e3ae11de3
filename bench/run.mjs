#!/usr/bin/env node
/**
 * `npm run bench`: ours and installed peers in turns, in one run, on the same threads; the speed table on the screen. A whole
 * run writes it to bench/results and docs/benchmarks.md. What is measured: bench/cases.mjs.
 *
 *   --case ID      only this row or group (repeatable; names below with --list)
 *   --quick        every row in under ten minutes: short windows, two rounds; nothing is written
 *   --short        samples without peers, as CI runs them; nothing is written
 *   --no-peers     ours alone                       --merge        put the rows of --case into the last result
 *   --windows N    rounds, default 6                --seconds S    length of a window, default 4
 *   --threads N    default: usable CPUs             --list         names of rows and groups
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { recordStage } from '../scripts/lib/results.mjs'
import { fail, probe, root, SetupError, say } from '../scripts/lib/run.mjs'
import { GROUPS, ROWS, SHORT_GROUPS } from './cases.mjs'
import { commandOf } from './lib/commands.mjs'
import { Contender } from './lib/contender.mjs'
import { commit, machine } from './lib/machine.mjs'
import { compareRow, markdown, merged, runOf } from './lib/table.mjs'
import { ensureOnnx, ensurePeers } from './peers.mjs'

const { values } = parseArgs({
  options: {
    short: { type: 'boolean', default: false },
    quick: { type: 'boolean', default: false },
    merge: { type: 'boolean', default: false },
    list: { type: 'boolean', default: false },
    'no-peers': { type: 'boolean', default: false },
    case: { type: 'string', multiple: true },
    windows: { type: 'string' },
    seconds: { type: 'string' },
    threads: { type: 'string', default: String(os.availableParallelism()) },
  },
})
const brief = values.short || values.quick
const threads = Number(values.threads)
const windows = Number(values.windows ?? (values.short ? 1 : values.quick ? 2 : 6))
const seconds = Number(values.seconds ?? (brief ? 1 : 4))
const warmup = brief ? 1 : 2
/** Peers spin for a while after a parallel region, loaders prefetch: not in the next one's time. */
const settleMs = (specs) => (Object.values(specs).some((s) => s.data) ? 1000 : 250)

const RESULTS = path.join(root, 'bench/results')
const DOCS = path.join(root, 'docs/benchmarks.md')
const [BEGIN, END] = ['<!-- table: made by npm run bench -->', '<!-- end of table -->']

const STARTUP = path.join(root, 'bench/startup.mjs')

/** The start times of bench/startup.mjs that have a limit. */
function startTimes() {
  const { stdout, stderr } = probe(process.execPath, [STARTUP, brief ? '5' : '20', '--json'])
  if (!stdout.startsWith('{')) throw new SetupError(`bench/startup.mjs failed: ${stderr.trim()}`, undefined, 70)
  const named = JSON.parse(stdout).rows.filter((r) => ['effnet --help', 'effnet train (first line)'].includes(r.name))
  for (const r of named) say('bench', `startup  ${r.name} ${r.first_median.toFixed(0)} ms (limit ${r.limit} ms)`)
  return named.map(({ name, limit, first_min, first_median }) => ({
    work: `start: ${name}`,
    ms: first_median,
    best: first_min,
    must: limit,
  }))
}

/** Which contenders of which groups run: all, or those that the chosen rows need. */
function chosen() {
  const all = values.short ? SHORT_GROUPS : GROUPS
  const rows = values.short ? [] : ROWS
  const wanted = values.case ?? Object.keys(all)
  const picked = rows.filter((r) => wanted.includes(r.id) || wanted.includes(r.group))
  const groups = {}
  for (const [id, group] of Object.entries(all)) {
    const keys = wanted.includes(id)
      ? Object.keys(group)
      : Object.keys(group).filter((k) => picked.some((r) => r.group === id && [r.ours, ...r.peers].includes(k)))
    const entries = keys.map((k) => [k, group[k]]).filter(([, c]) => c.who === 'effnet' || !values['no-peers'])
    if (entries.length > 0) groups[id] = Object.fromEntries(entries)
  }
  const startup = !values.short && (values.case?.includes('startup') ?? true)
  if (Object.keys(groups).length === 0 && !startup) {
    const names = [...rows.map((r) => r.id), ...Object.keys(all), 'startup']
    throw new SetupError(`no case ${values.case}; there are ${[...new Set(names)].join(', ')}`, undefined, 64)
  }
  return { groups, rows: values['no-peers'] ? [] : picked, startup }
}

/** Starts one contender; what fails is part of the result. */
async function enter(name, spec) {
  const entry = { label: spec.label, windows: [], peakBytes: 0, versions: {} }
  const begin = performance.now()
  let contender
  try {
    const { command, env } = commandOf(spec, { threads, warmup })
    contender = new Contender(name, command, env)
    await contender.ready(seconds)
    Object.assign(entry, {
      versions: contender.versions,
      steps: contender.steps,
      readySeconds: (performance.now() - begin) / 1000,
    })
    say('bench', `${name}  ${spec.label} ready after ${entry.readySeconds.toFixed(1)} s`)
  } catch (e) {
    entry.error = e.message
    say('bench', `${name}  ${spec.label} FAILED: ${e.message}`)
    await contender?.close()
    contender = undefined
  }
  return { entry, contender }
}

async function measureGroup(id, specs) {
  const entries = {}
  const running = []
  try {
    for (const [key, spec] of Object.entries(specs)) {
      const { entry, contender } = await enter(`${id}-${key}`, spec)
      entries[key] = entry
      if (contender) running.push({ entry, contender })
    }
    for (let round = 0; round < windows; round++) {
      for (const { entry, contender } of round % 2 ? running.toReversed() : running) {
        await sleep(settleMs(specs))
        entry.windows.push(await contender.window())
        entry.peakBytes = contender.peakBytes
      }
      const rates = running.map(({ entry }) => `${entry.label} ${entry.windows.at(-1).toFixed(1)}`)
      say('bench', `${id}  round ${round + 1}/${windows}  ${rates.join(' · ')}`)
    }
  } finally {
    await Promise.all(running.map(({ contender }) => contender.close()))
  }
  return entries
}

function lastResult() {
  const files = existsSync(RESULTS) ? readdirSync(RESULTS).filter((f) => f.endsWith('.json')) : []
  const read = files.map((f) => JSON.parse(readFileSync(path.join(RESULTS, f), 'utf8'))).filter((r) => r.groups)
  const last = read.sort((a, b) => (a.date < b.date ? -1 : 1)).at(-1)
  if (last) return last
  throw new SetupError('--merge: there is no whole result in bench/results', 'npm run bench', 66)
}

function write(report) {
  const slug = report.machine.cpu
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-|-$/g, '')
  const base = path.join(RESULTS, `${report.date}-${slug}`)
  mkdirSync(RESULTS, { recursive: true })
  writeFileSync(`${base}.json`, `${JSON.stringify(report, null, 2)}\n`)
  const text = readFileSync(DOCS, 'utf8')
  const [head, tail] = [text.split(BEGIN)[0], text.split(END)[1]]
  writeFileSync(DOCS, `${head}${BEGIN}\n\n${markdown(report)}\n${END}${tail}`)
  say('bench', `written to ${path.relative(root, base)}.json and ${path.relative(root, DOCS)}`)
}

async function bench() {
  const { groups, rows, startup } = chosen()
  if (values.list) {
    process.stdout.write(`rows: ${rows.map((r) => r.id).join(', ')}\ngroups: ${Object.keys(groups).join(', ')}, startup\n`)
    return
  }
  const specs = Object.values(groups).flatMap((g) => Object.values(g))
  await ensurePeers(specs.map((s) => s.who))
  for (const s of specs) if (s.who === 'ort' || s.who === 'ort_node') await ensureOnnx(s.model, s.imageSize)
  const begin = performance.now()
  const args = process.argv.slice(2).join(' ')
  const report = {
    date: new Date().toISOString().slice(0, 10),
    commit: commit(),
    machine: machine(),
    threads,
    command: `npm run bench${args && ` -- ${args}`}`,
    versions: {},
    rows: [],
    groups: {},
  }
  if (startup) report.startup = startTimes()
  for (const [id, group] of Object.entries(groups)) {
    report.groups[id] = await measureGroup(id, group)
    for (const entry of Object.values(report.groups[id])) {
      Object.assign(report.versions, entry.versions)
      entry.versions = undefined
    }
    for (const row of rows.filter((r) => r.group === id)) {
      const result = compareRow(row, report.groups[id], report.machine.amx)
      report.rows.push({ id: row.id, work: row.work, result })
      if (result.value) say('bench', `${row.id}  ${result.value.toFixed(2)}x  (must ${result.must}x, goal ${result.goal}x)`)
    }
  }
  report.rows.sort((a, b) => ROWS.findIndex((r) => r.id === a.id) - ROWS.findIndex((r) => r.id === b.id))
  report.seconds = (performance.now() - begin) / 1000
  const parts = [...Object.keys(report.groups), ...(report.startup ? ['startup'] : [])]
  report.runs = Object.fromEntries(parts.map((part) => [part, runOf(report)]))
  const failed = Object.values(report.groups).flatMap((g) =>
    Object.values(g).filter((c) => c.error && c.label.startsWith('effnet')),
  )
  const shown = values.merge ? merged(lastResult(), report, ROWS) : report
  process.stdout.write(`\n${markdown(shown)}`)
  const whole = !brief && !values.case && !values['no-peers']
  if (whole || values.merge) write(shown)
  if (failed.length > 0) throw new SetupError(`${failed[0].label} failed: ${failed[0].error}`, undefined, 70)
}

try {
  await bench()
  if (values.short) recordStage('bench', true)
} catch (e) {
  fail(e)
  if (values.short) recordStage('bench', false, e.message)
}
