/**
 * Test counts, kept as one small JSON file a suite under .cache/test-results, so that whoever ran a suite and whoever sums
 * up agree: {name, passed, failed, skipped, failures: [text]}.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { cache } from './run.mjs'

export const resultsDir = path.join(cache, 'test-results')
const summaryDir = path.join(resultsDir, 'summary')

export function clearResults() {
  rmSync(resultsDir, { recursive: true, force: true })
  mkdirSync(summaryDir, { recursive: true })
}

export function record(name, { passed, failed, skipped = 0, failures = [] }) {
  mkdirSync(summaryDir, { recursive: true })
  writeFileSync(
    path.join(summaryDir, `${name}.json`),
    `${JSON.stringify({ name, passed, failed, skipped, failures }, null, 2)}\n`,
  )
  return { passed, failed, skipped, failures }
}

/** A stage that either works or does not counts as one test. */
export const recordStage = (name, ok, why = '') =>
  record(name, { passed: ok ? 1 : 0, failed: ok ? 0 : 1, failures: ok ? [] : [why || name] })

export function allResults() {
  if (!existsSync(summaryDir)) return []
  return readdirSync(summaryDir)
    .sort()
    .map((f) => JSON.parse(readFileSync(path.join(summaryDir, f), 'utf8')))
}

/** Counts of vitest's JSON report. A file that does not load has no tests and still fails. */
export function countVitest(file) {
  if (!existsSync(file)) return { passed: 0, failed: 1, failures: ['vitest wrote no report'] }
  const report = JSON.parse(readFileSync(file, 'utf8'))
  const count = { passed: 0, failed: 0, skipped: 0, failures: [] }
  for (const suite of report.testResults) {
    for (const test of suite.assertionResults) {
      if (test.status === 'passed') count.passed++
      else if (test.status === 'failed') {
        count.failed++
        count.failures.push(`${path.basename(suite.name)}: ${test.fullName}`)
      } else count.skipped++
    }
    if (suite.status === 'failed' && !suite.assertionResults.some((t) => t.status === 'failed')) {
      count.failed++
      count.failures.push(`${path.basename(suite.name)}: ${suite.message || 'did not load'}`)
    }
  }
  if (count.failed === 0 && report.success === false) {
    count.failed++
    count.failures.push('vitest: errors outside of tests')
  }
  return count
}

/**
 * Counts of GoogleTest's JSON reports and of ctest's JUnit file. A program that ctest runs several times (`x`, `x_avx2`) leaves
 * x.json, x_1.json...; a run that ctest calls failed without a failed test in a report died, and counts as one failure.
 */
export function countNative(folder, junitFile) {
  if (!existsSync(junitFile)) return { passed: 0, failed: 1, failures: ['ctest wrote no report'] }
  const count = { passed: 0, failed: 0, skipped: 0, failures: [] }
  const failedReports = new Map()
  for (const file of existsSync(folder) ? readdirSync(folder) : []) {
    const program = file.replace(/(_\d+)?\.json$/, '')
    let failed = 0
    for (const test of JSON.parse(readFileSync(path.join(folder, file), 'utf8')).testsuites.flatMap((s) => s.testsuite)) {
      if (test.failures) {
        failed++
        count.failures.push(`${program}: ${test.classname}.${test.name}`)
      } else if (test.result === 'SKIPPED' || test.status !== 'RUN') count.skipped++
      else count.passed++
    }
    count.failed += failed
    if (failed > 0) failedReports.set(program, (failedReports.get(program) ?? 0) + 1)
  }
  for (const [, name, status] of readFileSync(junitFile, 'utf8').matchAll(/<testcase name="([^"]+)"[^>]*status="([^"]+)"/g)) {
    if (status === 'run') continue
    const program = name.replace(/_avx\d+$/, '')
    const reported = failedReports.get(program) ?? 0
    failedReports.set(program, reported - 1)
    if (reported > 0) continue
    count.failed++
    count.failures.push(`${name}: the program ended with status "${status}"`)
  }
  return count
}
