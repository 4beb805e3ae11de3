/**
 * `node scripts/gpu/results.mjs DIR [--peers DIR] [--into DIR]`: what gpu-check.sh has measured, as files of bench/results/gpu: one a
 * case, named by date, GPU, driver, versions, work, type and batch, with PyTorch eager of the same run beside it. With `--peers`, the
 * folder of a call `--stage peers`: PyTorch's fastest mode, of a case in 16 bit in either type, too, where that call's eager agrees with this run's on the same GPU and
 * versions; otherwise the two runs do not compare, and the file says why.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
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
const keyOf = ({ mode, model, batch, size, precision }) => [mode, model, batch, size, precision].join(' ')
/** As keyOf, whichever 16-bit type it is. */
const workOf = (row) => keyOf({ ...row, precision: row.precision.replace(/^[bf][pf]16-mixed$/, '16 bit') })

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

/** The fastest of PyTorch's modes in another call, or why it says nothing about this one. */
function bestPeer(row, anchor, table, drivers) {
  const modes = table.filter((each) => workOf(each) === workOf(row) && each.images_per_s > 0)
  if (modes.length === 0) return { refused: 'that call has no row of it' }
  if (!anchor) return { refused: 'this run has no anchor' }
  const same = modes.find((each) => each.compile === anchor.compile && keyOf(each) === keyOf(row))
  if (!same) return { refused: `that call has no ${anchor.compile}` }
  for (const key of ['gpu', 'torch', 'cudnn'])
    if (same[key] !== anchor[key]) return { refused: `${key} is ${anchor[key]} here, ${same[key]} there` }
  if (drivers.includes(undefined)) return { refused: "the driver's release is not known" }
  if (drivers[0] !== drivers[1]) return { refused: `the driver is ${drivers[0]} here, ${drivers[1]} there` }
  const apart = Math.abs(same.images_per_s / anchor.images_per_s - 1)
  if (apart > ANCHOR) return { refused: `the anchors are ${(100 * apart).toFixed(1)} % apart, ${100 * ANCHOR} % are allowed` }
  const best = modes.reduce((a, b) => (b.images_per_s > a.images_per_s ? b : a))
  return { ...best, ratio: row.images_per_s / best.images_per_s }
}

/** What stages have said, of a call's folder: the machine, and rows of measurements. */
function logsOf(folder) {
  const logs = mkdtempSync(path.join(os.tmpdir(), 'gpu-check-'))
  try {
    const archive = path.join(folder, 'logs.tar.gz')
    if (!existsSync(archive)) throw new Error(`${folder} has no logs.tar.gz of gpu-check.sh`)
    execFileSync('tar', ['-xzf', archive, '-C', logs])
    const [bench, peer, peers] = ['bench', 'peer', 'peers'].map((stage) => rowsOf(path.join(logs, `${stage}.log`)))
    return { machine: machineOf(logs), bench, peer, peers }
  } finally {
    rmSync(logs, { recursive: true })
  }
}

function machineOf(logs) {
  const smoke = readFileSync(path.join(logs, 'smoke.log'), 'utf8')
  // JSON over several lines, then one line of text.
  return JSON.parse(smoke.slice(smoke.indexOf('{'), smoke.indexOf('\n}') + 2))
}

/** Undefined where the machine did not tell. */
const driverOf = (machine) => machine?.driverRelease || undefined
/** As the driver counts: 13020 is 13.2. */
const cudaOf = ({ driverVersion }) => `cuda${Math.floor(driverVersion / 1000)}.${(driverVersion % 1000) / 10}`

export function reports(folder, peersFolder) {
  const { machine, bench, peer: anchors } = logsOf(folder)
  const theirs = peersFolder && logsOf(peersFolder)
  const said =
    readFileSync(path.join(folder, 'table.txt'), 'utf8')
      .match(/^gpu-check (\S+) (.+)$/gm)
      ?.at(-1) ?? ''
  const [, date, version] = /^gpu-check (\S+) (.+)$/.exec(said) ?? []
  if (!date) throw new Error(`${folder}/table.txt has no line of gpu-check`)
  if (bench.length === 0) throw new Error(`${folder}: no row of bench`)
  const peers = new Map(anchors.map((row) => [keyOf(row), row]))
  return bench.map((row) => {
    const peer = peers.get(keyOf(row))
    const gpu = machine.gpus[0].name
    const versions = [`driver${driverOf(machine) ?? '-unknown'}`, cudaOf(machine)]
    const work = [row.mode, row.model, `${row.size}px`, row.precision, `b${row.batch}`]
    const ratio = peer?.images_per_s > 0 ? row.images_per_s / peer.images_per_s : null
    const drivers = [machine, theirs?.machine].map(driverOf)
    const best = theirs ? { best_peer: bestPeer(row, peer, theirs.peers, drivers) } : {}
    return {
      file: `${[date.slice(0, 10), slug(gpu), ...versions, ...work.map(slug)].join('_')}.json`,
      report: {
        date,
        version,
        gpu,
        machine,
        ...row,
        peer: peer ?? null,
        ratio_to_peer: ratio,
        work: WORK,
        ...best,
      },
    }
  })
}

if (process.argv[1] && path.resolve(process.argv[1]) === import.meta.filename) {
  const known = { peers: { type: 'string' }, into: { type: 'string', default: 'bench/results/gpu' } }
  const usage = 'node scripts/gpu/results.mjs DIR [--peers DIR] [--into DIR]: DIR is what gpu-check.sh --out has filled'
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
