/**
 * Images a second of the cases, wall clock, inputs from host memory: a line of JSON each, the ten longest ops with it, then all in
 * one line.
 */
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
  const longest = plan
    .dump()
    .map(({ name, kernel, ms, bytes }) => ({ name, kernel, ms, gb_per_s: bytes / ms / 1e6 }))
    .sort((a, b) => b.ms - a.ms)
    .slice(0, 10)
  const rate = (wanted.batch * steps) / seconds
  process.stdout.write(`${JSON.stringify({ ...wanted, images_per_s: rate, ms: (1000 * seconds) / steps, longest })}\n`)
  summary.push(
    `${wanted.mode} ${wanted.model.replace('efficientnet', '')} ${wanted.batch} ${wanted.precision} ${rate.toFixed(0)}/s`,
  )
  await model.close()
}
process.stdout.write(`${summary.join(', ')}\n`)
