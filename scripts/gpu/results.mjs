/**
 * `node scripts/gpu/results.mjs DIR [--peers DIR]... [--into DIR]`: what gpu-check.sh has measured, as files of bench/results/gpu: one a
 * case, named by date, GPU, driver, versions, work, type and batch ("tuned": with measured kernels), with PyTorch eager beside it. With
 * stages `peers`, in DIR or in folders of `--peers`: PyTorch's fastest mode, of a case in 16 bit in either type, too; `complete` where every
 * mode was considered, and what became of each.
 *
 * Each row says of which call it is. Figures of PyTorch from another call count where that call's eager agrees with this one's on the same
 * GPU, driver and versions; otherwise the two do not compare, and the file says why.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'

const slug = (text) =>
  String(text)
    .toLowerCase()
    .replace(/[^a-z0-9.]+/g, '-')
    .replace(/^-|-$/g, '')
const rowsOf = (file) =>
  existsSync(file)
    ? readFileSync(file, 'utf8')
        .split('\n')
        .filter((line) => line.startsWith('{"'))
        .map((line) => JSON.parse(line))
    : []
/** How far apart two measurements of the same work may be and still be those of one machine. */
const ANCHOR = 0.03
const { torch_modes: MODES } = JSON.parse(readFileSync(new URL('protocol.json', import.meta.url), 'utf8'))
const keyOf = ({ mode, model, batch, size, precision }) => [mode, model, batch, size, precision].join(' ')
const SIXTEEN_BIT = ['bf16-mixed', 'fp16-mixed']
/** As keyOf, whichever 16-bit type it is. */
const workOf = (row) => keyOf({ ...row, precision: SIXTEEN_BIT.includes(row.precision) ? '16 bit' : row.precision })

/** What a step does on either side, so that a ratio says what it is of. */
const WORK = {
  both:
    'training: forward, backward, SGD with momentum 0.9 and weight decay 1e-5, an average of the weights, dropout and stochastic depth ' +
    '0.2, label smoothing 0.1, running statistics of BN; fp16 also a loss scale, its check and its update. Inference: logits',
  ours_alone:
    'the batch of uint8 images and its labels is copied from page-locked memory of the host and normalised on the GPU, and the loss is ' +
    'read back, each step',
  peer_alone: 'images lie on the GPU as normalised FP32 (inference in 16 bit: as that), and nothing is copied',
}

const isEager = (row) => row.compile === 'eager' && row.images_per_s > 0

/**
 * Why a row of PyTorch says nothing about one call; empty: it does. `anchors`: PyTorch eager in that call, `others`: all rows of PyTorch;
 * of the row's own call, eager on the same work is compared, or on any other where that was not measured.
 */
function refusal(row, call, anchors, others) {
  if (row.call.date === call.date) return ''
  if (row.call.gpu !== call.gpu) return `gpu is ${call.gpu} here, ${row.call.gpu} there`
  if (!row.call.driver || !call.driver) return "the driver's release is not known"
  if (row.call.driver !== call.driver) return `the driver is ${call.driver} here, ${row.call.driver} there`
  if (anchors.length === 0) return 'this call has no anchor'
  const there = others.filter((each) => isEager(each) && each.call.date === row.call.date)
  const pairs = anchors.flatMap((here) => there.filter((each) => keyOf(each) === keyOf(here)).map((each) => [here, each]))
  const [here, same] = pairs.find(([each]) => keyOf(each) === keyOf(row)) ?? pairs[0] ?? []
  if (!same) return 'that call has no eager of what this one has'
  for (const key of ['torch', 'cudnn']) {
    const differs = [same, row].find((each) => each[key] !== here[key])
    if (differs) return `${key} is ${here[key]} here, ${differs[key]} there`
  }
  const apart = Math.abs(same.images_per_s / here.images_per_s - 1)
  return apart > ANCHOR ? `the anchors are ${(100 * apart).toFixed(1)} % apart, ${100 * ANCHOR} % are allowed` : ''
}

/** The fastest of those rows that compare, or why none does. */
function fastest(row, found, anchors, others) {
  if (found.length === 0) return { refused: 'PyTorch was not measured on it' }
  const judged = found.map((each) => ({ each, reason: refusal(each, row.call, anchors, others) }))
  const usable = judged.filter(({ reason }) => reason === '').map(({ each }) => each)
  if (usable.length === 0) return { refused: judged[0].reason }
  const best = usable.reduce((a, b) => (b.images_per_s > a.images_per_s ? b : a))
  return { ...best, ratio: row.images_per_s / best.images_per_s }
}

/**
 * What became of each of PyTorch's modes on a row's work: considered, by its best figure; refused, as `refusal` says; failed; missing. The
 * fastest is that of all modes only where all were considered.
 */
function modesOf(row, found, anchors, others) {
  const precisions = SIXTEEN_BIT.includes(row.precision) ? SIXTEEN_BIT : [row.precision]
  const modes = { considered: [], refused: [], failed: [], missing: [] }
  for (const mode of precisions.flatMap((precision) => MODES.map((compile) => ({ precision, compile })))) {
    const of = found.filter((each) => each.precision === mode.precision && each.compile === mode.compile)
    const measured = of.filter((each) => each.images_per_s > 0)
    const reasons = measured.map((each) => refusal(each, row.call, anchors, others))
    const figures = measured.filter((_, i) => reasons[i] === '').map((each) => each.images_per_s)
    if (figures.length > 0) modes.considered.push({ ...mode, images_per_s: Math.max(...figures) })
    else if (measured.length > 0) modes.refused.push({ ...mode, reason: reasons.at(-1) })
    else if (of.length > 0) modes.failed.push({ ...mode, error: of.at(-1).error })
    else modes.missing.push(mode)
  }
  return { complete: modes.considered.length === precisions.length * MODES.length, modes }
}

function bestPeer(row, found, anchors, others) {
  const measured = found.filter((each) => each.images_per_s > 0)
  return { ...fastest(row, measured, anchors, others), ...modesOf(row, found, anchors, others) }
}

/** What stages have said, of a call's folder: the machine of its last call, and rows of measurements. */
function logsOf(folder) {
  const logs = mkdtempSync(path.join(os.tmpdir(), 'gpu-check-'))
  try {
    const archive = path.join(folder, 'logs.tar.gz')
    if (!existsSync(archive)) throw new Error(`${folder} has no logs.tar.gz of gpu-check.sh`)
    execFileSync('tar', ['-xzf', archive, '-C', logs])
    const table = path.join(logs, 'peers')
    const modes = (existsSync(table) ? readdirSync(table) : []).flatMap((name) => rowsOf(path.join(table, name)))
    const rows = ['bench', 'tuned', 'peer'].flatMap((stage) => rowsOf(path.join(logs, `${stage}.log`)))
    const unknown = [...rows, ...modes].find((row) => !row.call)
    if (unknown) throw new Error(`${folder}: a row of ${keyOf(unknown)} does not say of which call it is`)
    // PyTorch's say how it was compiled.
    return { machine: machineOf(logs), own: rows.filter((row) => !row.compile), eager: rows.filter((row) => row.compile), modes }
  } finally {
    rmSync(logs, { recursive: true })
  }
}

function machineOf(logs) {
  const smoke = readFileSync(path.join(logs, 'smoke.log'), 'utf8')
  // JSON over several lines, then one line of text.
  return JSON.parse(smoke.slice(smoke.indexOf('{'), smoke.indexOf('\n}') + 2))
}

/** As the driver counts: 13020 is 13.2. */
const cudaOf = (counted) => `cuda${Math.floor(counted / 1000)}.${(counted % 1000) / 10}`

export function reports(folder, peersFolders = []) {
  const { machine, own, eager, modes: modesHere } = logsOf(folder)
  if (own.length === 0) throw new Error(`${folder}: no row of bench or tuned`)
  const modes = [...modesHere, ...peersFolders.flatMap((each) => logsOf(each).modes)]
  return own.map((row) => {
    const { call } = row
    const anchors = eager.filter((each) => isEager(each) && each.call.date === call.date)
    const of = (rows, works) => rows.filter((each) => works(each) === works(row))
    const eagerHere = of(eager, keyOf).filter((each) => each.images_per_s > 0)
    const peer = fastest(row, eagerHere, anchors, eager)
    const versions = [`driver${call.driver || '-unknown'}`, cudaOf(call.cuda)]
    const work = [row.mode, row.model, `${row.size}px`, row.precision, `b${row.batch}`, ...(row.tuned ? ['tuned'] : [])]
    return {
      file: `${[call.date.slice(0, 10), slug(call.gpu), ...versions, ...work.map(slug)].join('_')}.json`,
      report: {
        date: call.date,
        version: call.version,
        gpu: call.gpu,
        driver: call.driver,
        // Of another call's no more is known than that call itself.
        machine: machine.call?.date === call.date ? machine : null,
        ...row,
        peer,
        ratio_to_peer: peer.ratio ?? null,
        work: WORK,
        ...(modes.length + peersFolders.length > 0 ? { best_peer: bestPeer(row, of(modes, workOf), anchors, modes) } : {}),
      },
    }
  })
}

if (process.argv[1] && path.resolve(process.argv[1]) === import.meta.filename) {
  const known = { peers: { type: 'string', multiple: true }, into: { type: 'string', default: 'bench/results/gpu' } }
  const usage = 'node scripts/gpu/results.mjs DIR [--peers DIR]... [--into DIR]: DIR is what gpu-check.sh --out has filled'
  const end = (code, said) => {
    process.stderr.write(`${said}\n`)
    process.exit(code)
  }
  const parsed = () => {
    try {
      return parseArgs({ options: known, allowPositionals: true })
    } catch (e) {
      return end(64, `${e.message}\n${usage}`)
    }
  }
  const { values, positionals } = parsed()
  if (positionals.length !== 1) end(64, usage)
  let all
  try {
    all = reports(positionals[0], values.peers)
  } catch (e) {
    end(66, e.message)
  }
  mkdirSync(values.into, { recursive: true })
  for (const { file, report } of all) writeFileSync(path.join(values.into, file), `${JSON.stringify(report, null, 2)}\n`)
  process.stdout.write(`${all.length} files in ${values.into}\n`)
}
