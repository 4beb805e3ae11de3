/**
 * Images a second of the cases, wall clock, inputs from host memory: a line of JSON each, the ten kernels that take longest with it (as
 * `effnet bench --profile` has them), then all in one line. Two shares: what the bytes of the plan's own operands take at the rate of copies,
 * of a step's time; and what `fused_mb` takes, a yardstick that no choice of
 * ours moves: an image's tensors in 16 bit where each operator between two convolutions is fused to one of them (counted from shapes).
 */
import { profileOf } from '../../dist/cli/profile.js'
import { cases, open, rehearsing } from './cases.mjs'

const WINDOW_MS = rehearsing ? 1 : 3000
const WARMUP = rehearsing ? 1 : 20
const PROFILED = rehearsing ? 1 : 5

const quantile = (sorted, p) => sorted[Math.max(0, Math.ceil(p * sorted.length) - 1)]

const summary = []
for (const wanted of cases) {
  const { model, plan, step } = await open(wanted)
  for (let i = 0; i < WARMUP; i++) await step()
  const times = []
  const begin = performance.now()
  for (let before = begin; before - begin < WINDOW_MS; ) {
    await step()
    const now = performance.now()
    times.push(now - before)
    before = now
  }
  const ms = (performance.now() - begin) / times.length
  times.sort((a, b) => a - b)
  plan.profile(true)
  for (let i = 0; i < PROFILED; i++) await step()
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
    images_per_s: (1e3 * wanted.batch) / ms,
    ms,
    median_ms: quantile(times, 0.5),
    p95_ms: quantile(times, 0.95),
    steps: times.length,
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
process.stdout.write(`${summary.join(', ')}\n`)
