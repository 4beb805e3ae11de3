#!/usr/bin/env node
/**
 * `npm test`: sets up what is missing, then formatters and linters, types, native tests, TypeScript tests; every stage runs
 * even when an earlier one failed. `npm test -- --only vitest -- test/graph` runs one stage with further arguments.
 */
import { createRequire } from 'node:module'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { defaultJobs } from './lib/build.mjs'
import { clearResults, countNative, countVitest, record, recordStage, resultsDir } from './lib/results.mjs'
import { cache, root, runThrough, say } from './lib/run.mjs'

const { values, positionals } = parseArgs({ options: { only: { type: 'string', multiple: true } }, allowPositionals: true })
const script = (name) => path.join(root, 'scripts', name)
const packageBin = (name, file) =>
  path.join(path.dirname(createRequire(path.join(root, 'package.json')).resolve(`${name}/package.json`)), file)

const stages = {
  lint: async () => recordStage('lint', (await runThrough(process.execPath, [script('lint.mjs')])) === 0),
  typecheck: async () => {
    const code = await runThrough(process.execPath, [packageBin('typescript', 'bin/tsc'), '-p', 'tsconfig.test.json', '--noEmit'])
    return recordStage('typecheck', code === 0)
  },
  native: async () => {
    const reports = path.join(resultsDir, 'gtest')
    const junit = path.join(resultsDir, 'ctest.xml')
    const args = ['--test-dir', 'build', '--output-junit', junit, '--output-on-failure', '--no-tests=error', '--timeout', '300']
    args.push('--parallel', String(defaultJobs()))
    await runThrough('ctest', [...args, ...positionals], { env: { GTEST_OUTPUT: `json:${reports}/` } })
    return record('native', countNative(reports, junit))
  },
  vitest: async () => {
    const report = path.join(resultsDir, 'vitest.json')
    const args = [
      packageBin('vitest', 'vitest.mjs'),
      'run',
      '--reporter=default',
      '--reporter=json',
      `--outputFile.json=${report}`,
    ]
    const code = await runThrough(process.execPath, [...args, ...positionals])
    const counts = countVitest(report)
    if (code !== 0 && counts.failed === 0) Object.assign(counts, { failed: 1, failures: [`vitest ended with exit code ${code}`] })
    return record('vitest', counts)
  },
}

async function main() {
  const wanted = values.only ?? Object.keys(stages)
  const unknown = wanted.find((s) => !(s in stages))
  if (unknown) {
    process.stderr.write(`--only ${unknown}: there are ${Object.keys(stages).join(', ')}\n`)
    return 64
  }
  clearResults()
  const ready = await runThrough(process.execPath, [script('setup.mjs'), '--test'])
  recordStage('setup', ready === 0)
  if (ready !== 0) return ready
  const data = process.env.EFFNET_TEST_DATA
  say('test', data ? `EFFNET_TEST_DATA is ${data}` : 'EFFNET_TEST_DATA is not set: tests on real photos and weights are skipped')
  let failed = 0
  for (const stage of wanted) {
    say('test', stage)
    const result = await stages[stage]()
    failed += result.failed
    for (const text of result.failures) process.stderr.write(`failed: ${text.split('\n')[0]}\n`)
    say(
      'test',
      `${stage}: ${result.passed} passed, ${result.failed} failed${result.skipped ? `, ${result.skipped} skipped` : ''}`,
    )
  }
  return failed === 0 ? 0 : 1
}

process.exitCode = await main()
if (process.exitCode !== 0) say('test', `failed; reports are in ${path.relative(root, path.join(cache, 'test-results'))}`)
