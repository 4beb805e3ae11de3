#!/usr/bin/env node
/**
 * How free the event loop stays while training steps run: `node bench/event-loop.mjs [DATA]`. Prints percentiles of the delay
 * beyond the timer's own resolution, before the first step (the plan is made) and from it on; fails when the 99th of the latter
 * reaches 5 ms. Run it on an otherwise idle machine.
 */
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { createModel, imageFolder, Trainer } from 'effnet-native'

const RESOLUTION_MS = 1
const LIMIT_MS = 5

const data = await imageFolder(process.argv[2] ?? 'models/demo')
const model = await createModel('efficientnet_b0', { classes: data.classes, imageSize: 64 })
const delay = monitorEventLoopDelay({ resolution: RESOLUTION_MS })

/** Milliseconds beyond the resolution since the last call. */
function percentiles() {
  const excess = (ns) => Number(Math.max(0, ns / 1e6 - RESOLUTION_MS).toFixed(3))
  const at = (p) => excess(delay.percentile(p))
  const report = { samples: delay.count, p50: at(50), p99: at(99), p999: at(99.9), max: excess(delay.max) }
  delay.reset()
  return report
}

let before
const watch = {
  name: 'event-loop',
  onStepStart() {
    before ??= percentiles()
  },
}
const trainer = new Trainer({ model, maxEpochs: 3, lr: 1e-3, batchSize: 32, callbacks: [watch] })
delay.enable()
const { step } = await trainer.fit({ train: data.train })
const during = percentiles()
delay.disable()
await model.close()
process.stdout.write(`${JSON.stringify({ steps: step, event_loop_excess_ms: { before, during } })}\n`)
process.exitCode = during.p99 < LIMIT_MS ? 0 : 70
