/** `npm run reliability -- --only mistakes`: the table of mistakes through the command as users have it, each in its own process. */
import { spawn } from 'node:child_process'
import { chmodSync, mkdirSync, readdirSync, rmSync } from 'node:fs'
import path from 'node:path'
import { diskMistakes, folderHash, mistakes, mounts, permissionMistakes, prepareMistakes, wrongWith } from './mistakes.mjs'
import { root } from './run.mjs'

const LIMIT_MS = 1000
/** A sample on a machine that others use says nothing of a second; it must still end. */
const SAMPLE_LIMIT_MS = 20_000
const NOBODY = 65534
const OUTPUTS = ['never', 'small', 'fixed']
const bin = path.join(root, 'bin/effnet.mjs')

/** Runs one command line; `ms` is from the start of the process to its end. */
function run(argv, as) {
  return new Promise((resolve, reject) => {
    const begin = performance.now()
    const env = { ...process.env, PATH: `${path.join(root, 'node_modules/.bin')}:${process.env.PATH}` }
    const child = spawn(process.execPath, [bin, ...argv], { env, stdio: ['ignore', 'ignore', 'pipe'], ...as })
    let stderr = ''
    child.stderr.on('data', (d) => {
      stderr += d
    })
    child.on('error', reject)
    child.on('close', (code) => resolve({ code, stderr, ms: performance.now() - begin }))
  })
}

/** On a busy machine the quickest of three, where the first is over the limit. */
async function quickest(row, limit, clear) {
  let best
  for (let attempt = 0; attempt < 3 && !(best?.ms <= limit); attempt++) {
    clear()
    const result = await run(row.argv, row.as)
    if (!best || result.ms < best.ms) best = result
  }
  clear()
  return best
}

function clear(at) {
  for (const made of ['never', 'small/run']) rmSync(at(made), { recursive: true, force: true })
}

/** `short`: messages, codes and files are judged as ever, of the time only that there is an end. */
export async function mistakeSeries(work, short, report) {
  const limit = short ? SAMPLE_LIMIT_MS : LIMIT_MS
  const dir = path.join(work, 'mistakes')
  mkdirSync(dir)
  const at = (...names) => path.join(dir, ...names)
  const classes = path.join(root, 'models/demo/train')
  const photos = readdirSync(classes)
    .sort()
    .slice(0, 4)
    .flatMap((name) =>
      readdirSync(path.join(classes, name))
        .sort()
        .slice(0, 2)
        .map((f) => path.join(classes, name, f)),
    )
  await prepareMistakes(dir, photos, async (words) => {
    const { code, stderr } = await run(['train', ...words])
    if (code !== 0) throw new Error(`the run that mistakes are made with failed: ${stderr}`)
  })
  const { tmpfs, release } = mounts(dir)
  const superuser = process.getuid?.() === 0
  const other = superuser ? { uid: NOBODY, gid: NOBODY } : {}
  if (superuser) for (const open of [work, dir]) chmodSync(open, 0o755)
  try {
    const rows = [...mistakes(at), ...diskMistakes(at, tmpfs)].map((row) => ({ ...row, as: row.cwd ? { cwd: row.cwd } : {} }))
    rows.push(...permissionMistakes(at).map((row) => ({ ...row, as: other })))
    const before = folderHash(dir, OUTPUTS)
    const wrong = []
    let slowest = 0
    report(`${'mistake'.padEnd(38)} exit  ${'code'.padEnd(20)}   ms`)
    for (const row of rows) {
      const { code, stderr, ms } = await quickest(row, limit, () => clear(at))
      slowest = Math.max(slowest, ms)
      const why = wrongWith(row, code, stderr) ?? (ms > limit ? `longer than ${limit} ms` : undefined)
      if (why) wrong.push(`${row.name}: ${why}\n${stderr}`)
      report(
        `${row.name.padEnd(38)} ${String(code).padStart(4)}  ${row.code.padEnd(20)} ${ms.toFixed(0).padStart(4)}${why ? `   ${why}` : ''}`,
      )
    }
    if (folderHash(dir, OUTPUTS) !== before) wrong.push('files of the user changed')
    report(
      `${rows.length} mistakes, ${rows.length - wrong.length} told as they should be, slowest ${slowest.toFixed(0)} ms, no file changed`,
    )
    if (wrong.length > 0) throw new Error(wrong.join('\n'))
  } finally {
    release()
  }
}
