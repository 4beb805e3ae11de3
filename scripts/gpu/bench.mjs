/**
 * Images a second of the cases, wall clock, inputs from host memory: a line of JSON each, the ten kernels that take longest and the
 * share of the byte floor with it (as `effnet bench --profile` has them), then all in one line.
 */
import { profileOf } from '../../dist/cli/profile.js'
import { cases, open, rehearsing } from './cases.mjs'

const WINDOW_MS = rehearsing ? 1 : 3000

const summary = []
for (const wanted of cases) {
  const { model, plan, step } = await open(wanted)
  for (let i = 0; i < (rehearsing ? 1 : 10); i++) await step()
  const begin = performance.now()
  let steps = 0
  while (performance.now() - begin < WINDOW_MS) {
    await step()
    steps++
  }
  const seconds = (performance.now() - begin) / 1000
  plan.profile(true)
  await step()
  // Without what runs only when weights change.
  const ops = plan.dump().filter(({ ms }) => ms > 0)
  const { kernels, peaks } = profileOf(ops, await model.session.measurePeaks())
  const sum = (key) => kernels.reduce((total, kernel) => total + kernel[key], 0)
  const profile = { copy_gb_per_s: peaks.bytes / 1e9, ops_ms: sum('ms'), floor_ms: sum('floorMs') }
  const longest = kernels
    .slice(0, 10)
    .map(({ kernel, count, ms, bytes, floorMs }) => ({ kernel, count, ms, gb_per_s: bytes / ms / 1e6, floor: floorMs / ms }))
  const rate = (wanted.batch * steps) / seconds
  process.stdout.write(
    `${JSON.stringify({ ...wanted, images_per_s: rate, ms: (1000 * seconds) / steps, ...profile, longest })}\n`,
  )
  summary.push(
    `${wanted.mode} ${wanted.model.replace('efficientnet', '')} ${wanted.batch} ${wanted.precision} ${rate.toFixed(0)}/s ${((100 * profile.floor_ms) / profile.ops_ms).toFixed(0)} %`,
  )
  await model.close()
}
process.stdout.write(`${summary.join(', ')}\n`)
