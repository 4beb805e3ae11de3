/** One training step of the first case, its kernels launched one by one: what counters.sh measures. */
import { cases, open } from './cases.mjs'

const [wanted] = cases
const { model, plan, step } = await open({ ...wanted, batch: Math.min(wanted.batch, 32) })
plan.profile(true)
await step()
await model.close()
