#!/usr/bin/env node
/**
 * Sums up .cache/test-results: one line a suite, then `N passed, N failed`. A suite named as an argument that left no result
 * counts as one failure. Fails when anything failed or nothing ran.
 */
import { allResults } from './lib/results.mjs'

const results = allResults()
for (const name of process.argv.slice(2)) {
  if (!results.some((r) => r.name === name))
    results.push({ name, passed: 0, failed: 1, skipped: 0, failures: ['did not run to its end'] })
}
const sum = (key) => results.reduce((n, r) => n + r[key], 0)
for (const r of results) {
  process.stdout.write(`${r.name}: ${r.passed} passed, ${r.failed} failed, ${r.skipped} skipped\n`)
  for (const text of r.failures) process.stdout.write(`  ${text.split('\n')[0]}\n`)
}
process.stdout.write(`${sum('passed')} passed, ${sum('failed')} failed\n`)
process.exitCode = sum('failed') === 0 && sum('passed') > 0 ? 0 : 1
