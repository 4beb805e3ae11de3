#!/usr/bin/env node
/**
 * `npm run bench`: ours and installed peers in turns, in one run, on the same threads; a table on the screen and in
 * bench/results. Every figure is the median over the rounds; beside it the slowest and fastest round.
 *
 *   --short        samples without peers, as CI runs them; nothing is written
 *   --no-peers     ours alone
 *   --case ID      only this case (repeatable)      --rounds N   default 3      --threads N   default: usable CPUs
 */
import { execFile } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { parseArgs, promisify } from 'node:util'
import { effnetOk } from '../scripts/lib/effnet.mjs'
import { recordStage } from '../scripts/lib/results.mjs'
import { fail, probe, root, SetupError, say } from '../scripts/lib/run.mjs'
import { CASES, SHORT_CASES } from './cases.mjs'
import { ensurePeers, onnxCache, peerPython } from './peers.mjs'

const { values } = parseArgs({
  options: {
    short: { type: 'boolean', default: false },
    'no-peers': { type: 'boolean', default: false },
    case: { type: 'string', multiple: true },
    rounds: { type: 'string', default: '3' },
    threads: { type: 'string', default: String(os.availableParallelism()) },
  },
})
const threads = Number(values.threads)
const rounds = values.short ? 1 : Number(values.rounds)

const workOf = (c) =>
  Object.entries({
    model: c.model,
    'batch-size': c.batchSize,
    'image-size': c.imageSize,
    precision: c.precision,
    threads,
    steps: c.steps,
  })
    .filter(([, v]) => v !== undefined)
    .flatMap(([k, v]) => [`--${k}`, String(v)])

async function python(script, c) {
  const mode = c.mode === 'data' ? [] : ['--mode', c.mode]
  const args = ['-B', path.join(root, 'bench/peers', script), ...workOf(c), ...mode, '--cache', onnxCache]
  const env = { ...process.env, BENCH_DATA: c.data && path.join(root, c.data, 'train') }
  const { stdout } = await promisify(execFile)(peerPython, args, { cwd: root, env, maxBuffer: 1 << 24 })
  return JSON.parse(stdout.trim().split('\n').at(-1))
}

const CONTENDERS = {
  effnet: async (c) => {
    const data = c.data ? ['--data', c.data] : []
    return (await effnetOk(['bench', '--mode', c.mode, ...workOf(c), ...data], { quiet: true })).at(-1)
  },
  torch: (c) => python('torch_cpu.py', c),
  torch_data: (c) => python('torch_data.py', c),
  ort: (c) => python('ort_cpu.py', c),
}

const median = (xs) => {
  const sorted = [...xs].sort((a, b) => a - b)
  const mid = sorted.length >> 1
  return sorted.length % 2 ? sorted[mid] : (sorted[mid - 1] + sorted[mid]) / 2
}

async function measureCase(c) {
  const who = ['effnet', ...(values.short || values['no-peers'] ? [] : c.peers)]
  const rates = Object.fromEntries(who.map((w) => [w, []]))
  const versions = {}
  for (let round = 0; round < rounds; round++) {
    for (const w of round % 2 ? [...who].reverse() : who) {
      const r = await CONTENDERS[w](c)
      if (!(r.images_per_s > 0)) throw new SetupError(`${w} gave no rate for ${c.id}: ${JSON.stringify(r).slice(0, 200)}`)
      rates[w].push(r.images_per_s)
      Object.assign(versions, r.versions)
      say('bench', `${c.id}  round ${round + 1}/${rounds}  ${w} ${r.images_per_s.toFixed(2)} images/s`)
    }
  }
  const row = { id: c.id, ...c, results: {} }
  for (const w of who) row.results[w] = { median: median(rates[w]), min: Math.min(...rates[w]), max: Math.max(...rates[w]) }
  return { row, versions }
}

function machine() {
  const info = readFileSync('/proc/cpuinfo', 'utf8')
  const field = (name) => new RegExp(`^${name}\\s*:\\s*(.*)$`, 'm').exec(info)?.[1] ?? 'unknown'
  const flags = new Set(field('flags').split(' '))
  const isa = ['avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'amx_bf16'].filter((f) => flags.has(f))
  return {
    cpu: field('model name'),
    isa,
    cpus: os.availableParallelism(),
    memoryGiB: Math.round(os.totalmem() / 2 ** 30),
    kernel: os.release(),
    load: os.loadavg()[0],
  }
}

function table(report) {
  const cell = (r) => (r ? `${r.median.toFixed(1)} (${r.min.toFixed(1)}-${r.max.toFixed(1)})` : '')
  const ratio = (a, b) => (b ? (a.median / b.median).toFixed(2) : '')
  const rows = report.rows.map(({ id, results: { effnet, torch_data, torch = torch_data, ort } }) =>
    ['', id, cell(effnet), cell(torch), ratio(effnet, torch), cell(ort), ratio(effnet, ort), ''].join(' | ').trim(),
  )
  return `# ${report.date}, ${report.machine.cpu}

${report.machine.cpus} CPUs (${report.machine.isa.join(', ')}), ${report.machine.memoryGiB} GiB, Linux ${report.machine.kernel}, Node ${process.versions.node}, commit ${report.commit}, load average before the start ${report.machine.load.toFixed(1)}.
${[...Object.entries(report.versions).map(([k, v]) => `${k} ${v}`), `${report.threads} threads each`].join(', ')}, contenders in turns, ${report.rounds} rounds.

Images/s: median of the rounds (slowest-fastest). Ratios: ours / theirs, above 1 is faster.

| case | effnet | PyTorch (eager, channels last; its DataLoader in data rows) | ratio | ONNX Runtime | ratio |
| --- | --- | --- | --- | --- | --- |
${rows.join('\n')}

Command: \`${report.command}\`
`
}

async function bench() {
  const all = values.short ? SHORT_CASES : CASES
  const cases = values.case ? all.filter((c) => values.case.includes(c.id)) : all
  if (cases.length === 0)
    throw new SetupError(`no case ${values.case}; there are ${all.map((c) => c.id).join(', ')}`, undefined, 64)
  if (!values.short && !values['no-peers'] && cases.some((c) => c.peers.length > 0)) await ensurePeers()
  const report = {
    date: new Date().toISOString().slice(0, 10),
    commit: probe('git', ['rev-parse', '--short', 'HEAD']).stdout.trim() || 'unknown',
    machine: machine(),
    threads,
    rounds,
    command: `npm run bench -- ${process.argv.slice(2).join(' ')}`.trim(),
    versions: {},
    rows: [],
  }
  for (const c of cases) {
    const { row, versions } = await measureCase(c)
    report.rows.push(row)
    Object.assign(report.versions, versions)
  }
  const text = table(report)
  process.stdout.write(`\n${text}`)
  if (values.short) return
  const slug = report.machine.cpu
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-|-$/g, '')
  const base = path.join(root, 'bench/results', `${report.date}-${slug}`)
  mkdirSync(path.dirname(base), { recursive: true })
  writeFileSync(`${base}.md`, text)
  writeFileSync(`${base}.json`, `${JSON.stringify(report, null, 2)}\n`)
  say('bench', `written to ${path.relative(root, base)}.md and .json`)
}

try {
  await bench()
  if (values.short) recordStage('bench', true)
} catch (e) {
  fail(e)
  if (values.short) recordStage('bench', false, e.message)
}
