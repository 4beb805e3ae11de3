#!/usr/bin/env node
/**
 * How long the command line takes: `node bench/startup.mjs [RUNS] [--json]`. Each command runs so many times (20) in turns with the
 * others, in a process of its own and as `node_modules/.bin/effnet` does; minimum and median of the time to its first line and to
 * its end, beside the same of Node alone, which tells how busy the machine is (about 40 ms where it is not). Fails when the minimum is
 * above the limit.
 */
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.resolve(fileURLToPath(import.meta.url), '../..')
const bin = path.join(root, 'bin/effnet.mjs')
const words = process.argv.slice(2)
const runs = Number(words.find((w) => /^\d+$/.test(w)) ?? 20)
const work = mkdtempSync(path.join(os.tmpdir(), 'effnet-startup-'))
const photo = path.join(root, 'models/demo/val')

const train = (i) => [
  'train',
  '--data',
  path.join(root, 'models/demo'),
  '--model',
  'efficientnet_b0',
  '--image-size',
  '32',
  '--out',
  path.join(work, String(i)),
]
/** `stop`: ended at its first line. `limit`: of that line, milliseconds. */
const cases = [
  { name: 'node -e 0', argv: () => undefined },
  { name: 'effnet --help', argv: () => ['--help'], limit: 300 },
  { name: 'effnet train --help', argv: () => ['train', '--help'], limit: 300 },
  { name: 'effnet --version', argv: () => ['--version'] },
  { name: 'effnet models list', argv: () => ['models', 'list'] },
  { name: 'effnet train (first line)', argv: train, limit: 500, stop: true },
  {
    name: 'effnet eval (first line)',
    argv: () => ['eval', '--data', photo, '--model', 'tf_efficientnet_b0'],
    limit: 500,
    stop: true,
  },
  { name: 'effnet train --bach-size 8', argv: () => ['train', '--bach-size', '8'], limit: 1000 },
]

function once(argv, stop) {
  return new Promise((resolve, reject) => {
    const begin = performance.now()
    const child = spawn(process.execPath, argv ? [bin, ...argv] : ['-e', '0'], { stdio: ['ignore', 'pipe', 'pipe'] })
    let first
    const heard = () => {
      first ??= performance.now() - begin
      if (stop) child.kill('SIGKILL')
    }
    child.stdout.on('data', heard)
    child.stderr.on('data', heard)
    child.on('error', reject)
    child.on('close', () => resolve({ first: first ?? performance.now() - begin, end: performance.now() - begin }))
  })
}

const measured = cases.map(() => [])
for (let i = 0; i < runs; i++) {
  for (const [k, { argv, stop }] of cases.entries()) measured[k].push(await once(argv(i), stop))
}
rmSync(work, { recursive: true, force: true })

const sorted = (k, key) => measured[k].map((m) => m[key]).sort((a, b) => a - b)
const rows = cases.map(({ name, limit = null, stop }, k) => {
  const [first, end] = [sorted(k, 'first'), sorted(k, 'end')]
  const middle = Math.floor(runs / 2)
  return {
    name,
    limit,
    first_min: first[0],
    first_median: first[middle],
    ...(stop ? {} : { end_min: end[0], end_median: end[middle] }),
  }
})
if (words.includes('--json')) process.stdout.write(`${JSON.stringify({ node: process.version, runs, rows })}\n`)
else {
  const cell = (n) => (n === undefined || n === null ? '-' : n.toFixed(0)).padStart(10)
  process.stdout.write(`${runs} runs, node ${process.version}; milliseconds\n`)
  process.stdout.write(
    `${''.padEnd(28)}${['first min', 'median', 'end min', 'median', 'limit'].map((t) => t.padStart(10)).join('')}\n`,
  )
  for (const r of rows) {
    process.stdout.write(
      `${r.name.padEnd(28)}${[r.first_min, r.first_median, r.end_min, r.end_median, r.limit].map(cell).join('')}\n`,
    )
  }
}
process.exitCode = rows.some((r) => r.limit !== null && r.first_min > r.limit) ? 70 : 0
