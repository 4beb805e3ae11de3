/**
 * Series of `npm run reliability` about checkpoints: runs of scripts/lib/tiny_run.mjs that are killed or told of I/O errors, and
 * checkpoints with flipped bits; and about signals to `effnet train`. `short` takes a sample.
 */
import { spawn } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { effnetJson } from './effnet.mjs'
import { root } from './run.mjs'

const SCRIPT = path.join(root, 'scripts/lib/tiny_run.mjs')
const TENSOR_FILES = ['model.safetensors', 'ema.safetensors', 'optimizer.safetensors']

/** Processes at once: each has one engine thread, and much of its time is start-up. */
const JOBS = 3

const expect = (ok, text) => {
  if (!ok) throw new Error(text)
}

function tinyRun(data, out, options, env = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [SCRIPT, data, out, JSON.stringify(options)], { env: { ...process.env, ...env } })
    let stdout = ''
    let stderr = ''
    child.stdout.on('data', (d) => {
      stdout += d
    })
    child.stderr.on('data', (d) => {
      stderr += d
    })
    child.on('error', reject)
    child.on('close', (code, signal) => {
      // Of a process that was killed the last line may be cut.
      const whole = stdout.slice(0, stdout.lastIndexOf('\n') + 1)
      const lines = whole.split('\n').filter(Boolean)
      resolve({ code, signal, stderr, lines: lines.map((l) => JSON.parse(l)) })
    })
  })
}

const checkpoint = (out, name = 'last') => path.join(out, 'checkpoints', name)
const start = (run) => run.lines.find((l) => l.event === 'start')?.step
const tensors = (out) => TENSOR_FILES.map((name) => readFileSync(path.join(checkpoint(out), name)))
const sameTensors = (a, b) => a.every((bytes, i) => bytes.equals(b[i]))
/** metrics.csv without time, rate and wait. */
const rows = (out) =>
  readFileSync(path.join(out, 'metrics.csv'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => line.split(',').toSpliced(-2, 2).toSpliced(2, 1).join())
    .join('\n')

/** Step of the verified checkpoint; undefined where there is none. The package's own reader, in this process. */
async function verifiedStep(dir) {
  const { binding } = await import('../../dist/binding.js')
  const { findFolder, verifyFolder } = await import('../../dist/train/checkpoint_folder.js')
  const found = await findFolder(dir)
  return found === undefined ? undefined : (await verifyFolder(binding(), found)).step
}

/** Runs `work` over `list`, a few at a time; the first failure ends it. */
async function inParallel(list, work) {
  let next = 0
  const worker = async () => {
    while (next < list.length) await work(list[next++])
  }
  await Promise.all(Array.from({ length: JOBS }, worker))
}

/** An undisturbed run with the list of its file operations: [{number, operation, file}]. */
async function listed(work, data, options) {
  const out = path.join(work, 'undisturbed')
  const log = path.join(work, 'operations')
  const run = await tinyRun(data, out, options, { EFFNET_FAULT_LOG: log })
  expect(run.code === 0, `the undisturbed run failed: ${run.stderr}`)
  const operations = readFileSync(log, 'utf8').trim().split('\n')
  return {
    out,
    tensors: tensors(out),
    rows: rows(out),
    best: await verifiedStep(checkpoint(out, 'best')),
    step: await verifiedStep(checkpoint(out)),
    logWrites: run.lines.find((l) => l.result).logWrites,
    operations: operations.map((line) => {
      const [number, operation, ...file] = line.split(' ')
      return { number: Number(number), operation, file: path.relative(out, file.join(' ')) }
    }),
  }
}

const KINDS = {
  kill: () => true,
  // Half a write, or any other operation done and nothing after it.
  torn: (o) => o.operation === 'write' || o.operation === 'rename',
  enospc: (o) => o.operation !== 'remove',
  eio: (o) => ['fsync', 'rename', 'close', 'write', 'link'].includes(o.operation),
}

/** Every file operation of the saves of a run goes wrong in every way. */
export async function faults({ work: base, data, short, report }) {
  const work = path.join(base, 'faults')
  mkdirSync(work)
  const options = { batchSize: 32, maxEpochs: 2, checkpoint: { everySteps: 2 } }
  const whole = await listed(work, data, options)
  const cases = whole.operations.flatMap((o) =>
    Object.keys(KINDS)
      .filter((kind) => KINDS[kind](o))
      .map((kind) => ({ ...o, kind })),
  )
  // Every 37th of a list that is no multiple of it: all kinds and sorts of operation come up.
  const chosen = short ? cases.filter((_, i) => i % 37 === 0) : cases
  const promoted = whole.operations.filter((o) => o.operation === 'rename' && o.file.endsWith('.writing-last'))
  const counts = { kill: 0, torn: 0, enospc: 0, eio: 0 }
  await inParallel(chosen, async (c) => {
    const out = path.join(work, `${c.kind}-${c.number}`)
    await failAndResume(c, out, { data, options, whole, promoted: promoted.filter((p) => p.number < c.number).length })
    counts[c.kind]++
    rmSync(out, { recursive: true, force: true })
  })
  const told = Object.entries(counts).map(([kind, n]) => `${kind} ${n}`)
  report(
    `${whole.operations.length} file operations in ${promoted.length} saves; ${told.join(', ')}: each resumed, same bytes as undisturbed`,
  )
}

/**
 * Every write to the other files of the run folder (logs, status, configuration, results, report): it alone fails, or it and all
 * after it. The run goes on with one warning, or ends with 74 and one message; a resume ends with the same bytes.
 */
export async function logs({ work: base, data, short, report }) {
  const work = path.join(base, 'logs')
  mkdirSync(work)
  const options = { batchSize: 32, maxEpochs: 2, checkpoint: { everySteps: 2 } }
  const whole = await listed(work, data, options)
  const cases = Array.from({ length: whole.logWrites }, (_, i) => i + 1).flatMap((number) =>
    ['enospc', 'eio', 'torn'].flatMap((kind) => ['', '+'].map((on) => `log:${number}${on}:${kind}`)),
  )
  const chosen = short ? cases.filter((_, i) => i % 23 === 0) : cases
  const counts = { unnoticed: 0, warned: 0, ended: 0 }
  await inParallel(chosen, async (fault) => {
    const out = path.join(work, fault.replaceAll(':', '-'))
    counts[await failLog(fault, out, { data, options, whole })]++
    rmSync(out, { recursive: true, force: true })
  })
  const { unnoticed, warned, ended } = counts
  report(
    `${whole.logWrites} writes to files beside the checkpoints, ${chosen.length} faults: ${unnoticed} written another way, ${warned} runs went on with a ` +
      `warning, ${ended} ended with 74; none lost its checkpoint, each ends with the same bytes`,
  )
}

async function failLog(fault, out, { data, options, whole }) {
  const where = `EFFNET_FAULT=${fault}`
  const code = fault.endsWith('eio') ? 'EFF_IO' : 'EFF_CKPT_NO_SPACE'
  const r = await tinyRun(data, out, options, { EFFNET_FAULT: fault })
  const errors = r.lines.filter((l) => l.error)
  const warnings = r.lines.filter((l) => l.event === 'warning')
  const unread = warnings.filter((l) => l.code !== code && !['log-lost', 'report', 'after-error'].includes(l.code))
  expect(unread.length === 0, `${where}: ${JSON.stringify(unread)}`)
  if (r.code !== 0) {
    expect(r.code === 74 && errors.length === 1 && errors[0].error.code === code, `${where}: exit code ${r.code}\n${r.stderr}`)
    // Its files could not be begun, or its results not be written: then all steps are in the checkpoint.
    const step = await verifiedStep(checkpoint(out))
    expect(step === undefined || step === whole.step, `${where}: checkpoint of step ${step}`)
    const again = await tinyRun(data, out, options)
    expect(again.code === 0, `${where}: the resumed run ended with ${again.signal ?? again.code}\n${again.stderr}`)
    if (step !== undefined) expect(start(again) === step, `${where}: resumed at ${start(again)}, there was ${step}`)
  } else if (fault.includes('+')) expect(warnings.length > 0, `${where}: nobody noticed`)
  expect(sameTensors(tensors(out), whole.tensors), `${where}: other weights than undisturbed`)
  expect((await verifiedStep(checkpoint(out, 'best'))) === whole.best, `${where}: another best checkpoint`)
  // What could not be written while the process lived is lost, and nothing else: no line comes twice or in part.
  const [seen, all] = [rows(out).split('\n'), whole.rows.split('\n')]
  const lost = warnings.some((l) => l.code === 'log-lost')
  expect(lost ? seen.every((row) => all.includes(row)) : rows(out) === whole.rows, `${where}: metrics.csv differs\n${rows(out)}`)
  return r.code !== 0 ? 'ended' : warnings.length > 0 ? 'warned' : 'unnoticed'
}

async function failAndResume({ number, operation, file, kind }, out, { data, options, whole, promoted }) {
  const where = `EFFNET_FAULT=save:${number}:${kind} (${operation} ${file})`
  const r = await tinyRun(data, out, options, { EFFNET_FAULT: `save:${number}:${kind}` })
  if (kind === 'kill' || kind === 'torn') expect(r.signal === 'SIGKILL', `${where}: ended with ${r.signal ?? r.code}`)
  else if (r.code === 0) expect(operation === 'link' || operation === 'reserve', `${where}: nobody noticed`)
  else {
    const errors = r.lines.filter((l) => l.error)
    const code = kind === 'enospc' ? 'EFF_CKPT_NO_SPACE' : 'EFF_IO'
    expect(r.code === 74 && errors.length === 1 && errors[0].error.code === code, `${where}: exit code ${r.code}\n${r.stderr}`)
    expect(r.stderr.trim().split('\n').length === 1 && !/\n\s+at /.test(r.stderr), `${where}: ${r.stderr}`)
    const status = JSON.parse(readFileSync(path.join(out, 'status.json'), 'utf8'))
    expect(status.state === 'failed', `${where}: status ${status.state}`)
  }
  const before = await verifiedStep(checkpoint(out))
  expect(promoted === 0 || before > 0, `${where}: no checkpoint, after ${promoted} saves`)
  const again = await tinyRun(data, out, options)
  expect(again.code === 0, `${where}: the resumed run ended with ${again.signal ?? again.code}\n${again.stderr}`)
  if (r.code !== 0 && start(again) !== undefined) {
    expect(start(again) >= (before ?? 0), `${where}: resumed at ${start(again)}, there was ${before}`)
  }
  expect(sameTensors(tensors(out), whole.tensors), `${where}: other weights than undisturbed`)
  expect(rows(out) === whole.rows, `${where}: metrics.csv differs\n${rows(out)}`)
  expect((await verifiedStep(checkpoint(out, 'best'))) === whole.best, `${where}: another best checkpoint`)
  const status = JSON.parse(readFileSync(path.join(out, 'status.json'), 'utf8'))
  expect(status.state === 'finished', `${where}: status ${status.state} at the end`)
  for (const name of ['results.json', 'report.html']) expect(existsSync(path.join(out, name)), `${where}: no ${name}`)
  const left = readdirSync(path.join(out, 'checkpoints')).filter((n) => !['last', 'last.prev', 'best'].includes(n))
  expect(left.length === 0, `${where}: ${left} left behind`)
}

/** kill -9 after step 1, 2, 3, ... of one run, each time resumed; a checkpoint every three steps. */
export async function killEachStep({ work: base, data, short, report }) {
  const work = path.join(base, 'kill-steps')
  mkdirSync(work)
  const last = short ? 6 : 200
  const options = { batchSize: 8, maxEpochs: Math.ceil((last + 1) / 12), checkpoint: { everySteps: 3 } }
  const whole = path.join(work, 'undisturbed')
  const undisturbed = await tinyRun(data, whole, options)
  expect(undisturbed.code === 0, undisturbed.stderr)
  const out = path.join(work, 'killed')
  let lost = 0
  for (let step = 1; step <= last; step++) {
    const r = await tinyRun(data, out, options, { EFFNET_FAULT: `step:${step}` })
    expect(r.signal === 'SIGKILL', `step ${step}: ended with ${r.code}\n${r.stderr}`)
    const from = start(r)
    // The save of three steps before may not have been complete, then it is the one before that.
    expect(from >= step - 7 && from < step, `step ${step}: resumed at ${from}`)
    lost = Math.max(lost, step - 1 - from)
  }
  const end = await tinyRun(data, out, options)
  expect(end.code === 0, `at the end: ${end.signal ?? end.code}\n${end.stderr}`)
  expect(sameTensors(tensors(out), tensors(whole)), 'other weights than undisturbed')
  expect(rows(out) === rows(whole), `metrics.csv differs\n${rows(out)}`)
  report(`killed after each of ${last} consecutive steps, at most ${lost} steps done again, same bytes as undisturbed`)
}

/** A flipped bit in every byte of a checkpoint is found and named; a run goes on from the checkpoint before. */
export async function bits({ work: base, data, short, random, report }) {
  const work = path.join(base, 'bits')
  mkdirSync(work)
  const options = { batchSize: 32, maxEpochs: 2, checkpoint: { everySteps: 2 } }
  const whole = path.join(work, 'undisturbed')
  const out = path.join(work, 'run')
  expect((await tinyRun(data, whole, options)).code === 0, 'the undisturbed run failed')
  // Killed after its second save: last, the one before it, and best of another step are there.
  const killed = await tinyRun(data, out, options, { EFFNET_FAULT: 'step:5' })
  expect(killed.signal === 'SIGKILL', `ended with ${killed.code}`)
  const copy = path.join(work, 'copy')
  copyFolder(checkpoint(out), copy)
  const found = await flipEveryByte(copy, short ? 211 : 1, random)
  report(`${found.flips} bits flipped in ${found.files} files of a checkpoint: all found, ${found.named} with their tensor`)
  // A damaged `last` and what the run does then, file by file.
  for (const name of readdirSync(copy)) {
    const again = path.join(work, `again-${name}`)
    for (const which of readdirSync(path.join(out, 'checkpoints')))
      copyFolder(checkpoint(out, which), path.join(again, 'checkpoints', which))
    flip(path.join(checkpoint(again), name), random)
    const r = await tinyRun(data, again, options)
    const warnings = r.lines.filter((l) => l.code === 'checkpoint-damaged')
    expect(
      r.code === 0 && warnings.length === 1,
      `damaged ${name}: exit code ${r.code}, ${warnings.length} warnings\n${r.stderr}`,
    )
    expect(warnings[0].message.includes(`last/${name}`), `damaged ${name}: ${warnings[0].message}`)
    expect(sameTensors(tensors(again), tensors(whole)), `damaged ${name}: other weights than undisturbed`)
  }
  report('a damaged last is skipped with one warning that names it, the run ends with the same bytes as undisturbed')
}

function copyFolder(from, to) {
  mkdirSync(to, { recursive: true })
  for (const name of readdirSync(from)) copyFileSync(path.join(from, name), path.join(to, name))
}

function flip(file, random) {
  const bytes = readFileSync(file)
  bytes[Math.floor(random() * bytes.length)] ^= 1 << Math.floor(random() * 8)
  writeFileSync(file, bytes)
}

async function flipEveryByte(dir, stride, random) {
  const { binding } = await import('../../dist/binding.js')
  const { verifyFolder } = await import('../../dist/train/checkpoint_folder.js')
  const { openSafetensors } = await import('../../dist/weights/safetensors.js')
  const count = { flips: 0, files: 0, named: 0 }
  for (const name of readdirSync(dir)) {
    const file = path.join(dir, name)
    const sound = readFileSync(file)
    const header = name.endsWith('.safetensors') ? await openSafetensors(file) : undefined
    count.files++
    for (let at = Math.floor(random() * stride); at < sound.length; at += stride) {
      const bytes = Buffer.from(sound)
      bytes[at] ^= 1 << Math.floor(random() * 8)
      writeFileSync(file, bytes)
      const error = await verifyFolder(binding(), dir).then(
        () => undefined,
        (e) => e,
      )
      expect(error?.code === 'EFF_CKPT_CORRUPT' && error.message.includes(file), `${name}, byte ${at}: ${error?.message}`)
      count.flips++
      if (!header) continue
      const inside = [...header.tensors.values()].find((t) => at >= header.dataStart + t.begin && at < header.dataStart + t.end)
      const part = inside ? `tensor ${inside.name} changed` : 'its header changed'
      expect(error.message.includes(part), `${name}, byte ${at}: ${error.message} does not say "${part}"`)
      if (inside) count.named++
    }
    writeFileSync(file, sound)
  }
  await verifyFolder(binding(), dir)
  return count
}

/** What is sent to a run, and the exit codes that may follow (0: it came too late). */
const STOPS = [
  { name: 'SIGTERM', codes: [75, 0], args: [] },
  { name: 'SIGINT', codes: [75, 0], args: [] },
  { name: 'SIGINT twice', signal: 'SIGINT', twice: true, codes: [130, 75, 0], args: [] },
  { name: 'SIGUSR1', codes: [75, 0], args: [] },
  { name: 'SIGUSR2', codes: [0], args: [] },
  { name: 'SIGTERM while it starts', signal: 'SIGTERM', early: true, codes: [75], args: [] },
  { name: 'SIGINT while it starts', signal: 'SIGINT', early: true, codes: [75], args: [] },
  { name: '--max-time', codes: [75, 0], args: ['--max-time', '1s'] },
]

/** Each signal, and a time budget, at random moments of `effnet train`: exit code, status.json, a checkpoint that loads. */
export async function signals({ work: base, rounds, random, train, whole, report }) {
  const work = path.join(base, 'signals')
  mkdirSync(work)
  const seen = {}
  let slowest = 0
  let unborn = 0
  let resumed = 0
  for (let round = 0; round < rounds; round++) {
    const stop = STOPS[round % STOPS.length]
    const out = path.join(work, String(round))
    const at = Math.round(stop.early ? 20 + 400 * random() : random() * whole.ms)
    const where = `${stop.name} at ${at} ms (${out})`
    let sent = 0
    let over = false
    const r = await effnetJson([...train(out), ...stop.args], {
      quiet: true,
      onSpawn: async (child) => {
        if (stop.name.startsWith('--')) return
        await sleep(at)
        sent = performance.now()
        if (!over) child.kill(stop.signal ?? stop.name)
        if (!stop.twice) return
        await sleep(Math.round(random() * 40))
        if (!over) child.kill(stop.signal)
      },
    })
    over = true
    if (sent && stop.name !== 'SIGUSR2') slowest = Math.max(slowest, performance.now() - sent)
    // A process that cannot listen yet has written nothing yet.
    if (r.signal !== null) {
      expect(r.signal === (stop.signal ?? stop.name) && !existsSync(out), `${where}: ended by ${r.signal}`)
      unborn++
      continue
    }
    expect(stop.codes.includes(r.code), `${where}: exit code ${r.code}\n${r.stderr}`)
    seen[r.code] = (seen[r.code] ?? 0) + 1
    await checkEnd(out, r.code, where)
    if (r.code !== 75 || round % 4 !== 0) continue
    const again = await effnetJson([...train(out), '--resume'], { quiet: true })
    expect(again.code === 0, `${where}: the resumed run ended with ${again.code}\n${again.stderr}`)
    const model = (of) => readFileSync(path.join(checkpoint(of), 'model.safetensors'))
    expect(model(out).equals(model(whole.out)), `${where}: other weights than undisturbed`)
    resumed++
  }
  const codes = Object.entries(seen).map(([code, n]) => `${code}: ${n}`)
  report(
    `${rounds} runs, exit codes ${codes.join(', ')}; ${unborn} ended before they could listen; at most ${(slowest / 1000).toFixed(1)} s ` +
      `from signal to end; ${resumed} resumed, same bytes as undisturbed`,
  )
}

async function checkEnd(out, code, where) {
  const file = path.join(out, 'status.json')
  if (code === 130 && !existsSync(file)) return
  const { state, exitCode } = JSON.parse(readFileSync(file, 'utf8'))
  // Told twice to end at once, a process may have finished its run and be about to end.
  const wanted = { 0: ['finished'], 130: ['interrupted', 'finished'] }[code] ?? ['interrupted']
  expect(wanted.includes(state) && exitCode === code, `${where}: exit code ${code}, status ${state} with ${exitCode}`)
  const step = await verifiedStep(checkpoint(out))
  expect(code === 130 || step !== undefined, `${where}: exit code ${code} and no checkpoint`)
}
