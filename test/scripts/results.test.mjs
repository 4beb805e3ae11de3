import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { countNative, countVitest } from '../../scripts/lib/results.mjs'

let dir
beforeEach(() => {
  dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-results-'))
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

const vitestReport = (testResults, success = true) => {
  const file = path.join(dir, 'vitest.json')
  writeFileSync(file, JSON.stringify({ success, testResults }))
  return countVitest(file)
}

describe('counts of vitest', () => {
  it('adds up files and keeps skipped tests apart', () => {
    const passed = { status: 'passed', fullName: 'a' }
    const counts = vitestReport([
      { name: 'x.test.ts', status: 'passed', assertionResults: [passed, { status: 'pending', fullName: 'b' }] },
      { name: 'y.test.ts', status: 'failed', assertionResults: [passed, { status: 'failed', fullName: 'c' }] },
    ])
    expect(counts).toEqual({ passed: 2, failed: 1, skipped: 1, failures: ['y.test.ts: c'] })
  })
  it('counts a file that does not load as a failure', () => {
    const counts = vitestReport([{ name: 'x.test.ts', status: 'failed', message: 'SyntaxError', assertionResults: [] }])
    expect(counts).toMatchObject({ passed: 0, failed: 1, failures: ['x.test.ts: SyntaxError'] })
  })
  it('counts errors outside of tests, and a missing report', () => {
    expect(vitestReport([], false).failed).toBe(1)
    expect(countVitest(path.join(dir, 'absent.json')).failed).toBe(1)
  })
})

describe('counts of native tests', () => {
  const junit = (cases) => {
    const file = path.join(dir, 'ctest.xml')
    const lines = cases.map(([name, status]) => `\t<testcase name="${name}" classname="${name}" time="0.1" status="${status}">`)
    writeFileSync(file, `<testsuite>\n${lines.join('\n')}\n</testsuite>\n`)
    return file
  }
  const gtest = (name, tests) => {
    mkdirSync(path.join(dir, 'gtest'), { recursive: true })
    const testsuite = tests.map((t, i) => ({ name: `t${i}`, classname: 'S', status: 'RUN', result: 'COMPLETED', ...t }))
    writeFileSync(path.join(dir, 'gtest', `${name}.json`), JSON.stringify({ testsuites: [{ testsuite }] }))
  }
  const count = (cases) => countNative(path.join(dir, 'gtest'), junit(cases))

  it('adds up the reports of every run of a program', () => {
    gtest('bn_test', [{}, {}])
    gtest('bn_test_1', [{}, { result: 'SKIPPED' }])
    expect(
      count([
        ['bn_test', 'run'],
        ['bn_test_avx2', 'run'],
      ]),
    ).toMatchObject({ passed: 3, failed: 0, skipped: 1 })
  })
  it('counts a failed test once, although ctest calls the program failed too', () => {
    gtest('bn_test', [{}, { failures: [{ failure: 'no' }] }])
    expect(count([['bn_test', 'fail']])).toMatchObject({ passed: 1, failed: 1, failures: ['bn_test: S.t1'] })
  })
  it('counts a program that died', () => {
    gtest('bn_test', [{}])
    expect(
      count([
        ['bn_test', 'run'],
        ['jpeg_test', 'fail'],
      ]),
    ).toMatchObject({ passed: 1, failed: 1 })
    expect(count([['bn_test_avx2', 'fail']]).failures[0]).toContain('bn_test_avx2')
  })
})
