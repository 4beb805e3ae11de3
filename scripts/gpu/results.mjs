/**
 * `node scripts/gpu/results.mjs DIR [INTO]`: what gpu-check.sh has measured, as files of bench/results/gpu: one a case, named by date,
 * GPU, driver, versions, work, type and batch, with the peer of the same run beside it.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'

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
const keyOf = ({ mode, model, batch, size, precision }) => [mode, model, batch, size, precision].join(' ')

export function reports(folder) {
  const smoke = readFileSync(path.join(folder, 'smoke.log'), 'utf8')
  // JSON over several lines, then one line of text.
  const machine = JSON.parse(smoke.slice(smoke.indexOf('{'), smoke.lastIndexOf('}') + 1))
  const said =
    readFileSync(path.join(folder, 'table.txt'), 'utf8')
      .match(/^gpu-check (\S+) (.+)$/gm)
      ?.at(-1) ?? ''
  const [, date, version] = /^gpu-check (\S+) (.+)$/.exec(said) ?? []
  if (!date) throw new Error(`${folder}/table.txt has no line of gpu-check`)
  const peers = new Map(rowsOf(path.join(folder, 'peer.log')).map((row) => [keyOf(row), row]))
  return rowsOf(path.join(folder, 'bench.log')).map((row) => {
    const peer = peers.get(keyOf(row))
    const gpu = machine.gpus[0].name
    // As the driver counts: 13020 is 13.2.
    const versions = `cuda${Math.floor(machine.driverVersion / 1000)}.${(machine.driverVersion % 1000) / 10}`
    const work = [row.mode, row.model, `${row.size}px`, row.precision, `b${row.batch}`]
    const floor = row.floor_ms > 0 ? row.floor_ms / row.ops_ms : null
    const ratio = peer ? row.images_per_s / peer.images_per_s : null
    return {
      file: `${[date.slice(0, 10), slug(gpu), versions, ...work.map(slug)].join('_')}.json`,
      report: { date, version, gpu, machine, ...row, share_of_byte_floor: floor, peer: peer ?? null, ratio_to_peer: ratio },
    }
  })
}

if (process.argv[1] && path.resolve(process.argv[1]) === import.meta.filename) {
  const [folder, into = 'bench/results/gpu'] = process.argv.slice(2)
  if (!folder) {
    process.stderr.write('node scripts/gpu/results.mjs DIR [INTO]: DIR is what gpu-check.sh --out has filled\n')
    process.exit(64)
  }
  mkdirSync(into, { recursive: true })
  const all = reports(folder)
  for (const { file, report } of all) writeFileSync(path.join(into, file), `${JSON.stringify(report, null, 2)}\n`)
  process.stdout.write(`${all.length} files in ${into}\n`)
}
