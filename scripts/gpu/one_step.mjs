/** One training step of the first case, its kernels launched one by one: what counters.sh reads counters of. */
import { cases, open } from './cases.mjs'

const { model, plan, step } = await open(cases[0])
plan.profile(true)
await step()
await model.close()
