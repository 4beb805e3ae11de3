/**
 * Images a second of the cases, wall clock, inputs from host memory: a line of JSON each, the ten kernels that take longest with it (as
 * `effnet bench --profile` has them), then all in one line. Two shares: what the bytes of the plan's own operands take at the rate of copies,
 * of a step's time; and what `fused_mb` takes, a yardstick that no choice of
 * ours moves: an image's tensors in 16 bit where each operator between two convolutions is fused to one of them (counted from shapes).
 */
import { readFileSync } from 'node:fs'
import { profileOf } from '../../dist/cli/profile.js'
import { presentCall } from './call.mjs'
import { cases, open, rehearsing } from './cases.mjs'

// As torch_peer.py does: so many steps, or fewer where these would take longer than a case's part of the stage, as those of large models
// do. In a call of its own there is time for all.
const protocol = JSON.parse(readFileSync(new URL('protocol.json', import.meta.url), 'utf8'))
const PROFILED = rehearsing ? 1 : 5

/** How long each of up to `most` steps takes, of no more than `seconds` but `least` in any case. */
async function timesOf(step, most, seconds, least) {
  const times = []
  const begin = performance.now()
  for (let before = begin; times.length < most && (times.length < least || before - begin < 1e3 * seconds); ) {
    await step()
    const now = performance.now()
    times.push(now - before)
    before = now
  }
  return times
}

const quantile = (sorted, p) => sorted[Math.max(0, Math.ceil(p * sorted.length) - 1)]

// The stage ends with what has been measured: a case that may have no time left is not begun.
const end = 1e3 * Number(process.env.EFFNET_STAGE_END ?? Infinity)
/** Seconds of the timed steps, a quarter of which is for those in front; `cases`: that are yet to come. */
const windowOf = (cases) => {
  const share = (end - Date.now()) / 1e3 / cases
  return Math.max(protocol.window_s, Math.min(protocol.longest_window_s, 0.8 * (share - protocol.case_s)))
}
const call = presentCall()
const tuned = process.env.EFFNET_CUDA_TUNE === '1'
const LONGEST_CASE_MS = tuned ? 45_000 : 15_000
const summary = []
let rest = 0
for (const [i, wanted] of cases.entries()) {
  if (end - Date.now() < LONGEST_CASE_MS) {
    rest++
    continue
  }
  const { model, plan, step } = await open(wanted)
  const { warmup, warmup_s, steps, least_steps } = protocol
  const window = windowOf(cases.length - i)
  const warmed = rehearsing ? await timesOf(step, 1, 0, 1) : await timesOf(step, warmup, Math.max(warmup_s, window / 4), 3)
  const times = rehearsing ? await timesOf(step, 2, 0, 2) : await timesOf(step, steps, window, least_steps)
  const ms = times.reduce((total, each) => total + each, 0) / times.length
  times.sort((a, b) => a - b)
  plan.profile(true)
  for (let k = 0; k < PROFILED; k++) await step()
  // Without what runs only when weights change.
  const ops = plan.dump().filter((op) => op.ms > 0)
  const { kernels, peaks } = profileOf(ops, await model.session.measurePeaks())
  const own_bytes_ms = kernels.reduce((total, kernel) => total + kernel.floorMs, 0)
  const longest = kernels
    .slice(0, 10)
    .map(({ kernel, count, ms, bytes, floorMs }) => ({ kernel, count, ms, gb_per_s: bytes / ms / 1e6, floor: floorMs / ms }))
  const fused_ms = wanted.fused_mb ? (wanted.fused_mb * 1e6 * wanted.batch * 1e3) / peaks.bytes : null
  const row = {
    ...wanted,
    call,
    tuned,
    images_per_s: (1e3 * wanted.batch) / ms,
    ms,
    median_ms: quantile(times, 0.5),
    p95_ms: quantile(times, 0.95),
    steps: times.length,
    warmup_steps: warmed.length,
    clock: 'wall, of each step to its end; the next batch is copied meanwhile, but for a batch of one',
    ops_ms: ops.reduce((total, op) => total + op.ms, 0),
    clock_of_ops: 'CUDA events around each, in steps whose kernels are launched one by one',
    copy_gb_per_s: peaks.bytes / 1e9,
    own_bytes_ms,
    share_of_own_bytes: own_bytes_ms / ms,
    share_of_fused_bytes: fused_ms && fused_ms / ms,
    longest,
  }
  process.stdout.write(`${JSON.stringify(row)}\n`)
  const share = row.share_of_fused_bytes
    ? `${(100 * row.share_of_fused_bytes).toFixed(0)} % of fused`
    : `${(100 * row.share_of_own_bytes).toFixed(0)} % of own bytes`
  summary.push(
    `${wanted.mode[0]} ${wanted.model.replace('efficientnet', '')} ${wanted.batch} ${row.images_per_s.toFixed(0)}/s ${share}`,
  )
  await model.close()
}
process.stdout.write(`${summary.join(', ')}${rest ? `; no time for ${rest} of ${cases.length} cases` : ''}\n`)
process.exitCode = rest ? 76 : 0
