/** Progress, colours, tables and numbers as they appear on a terminal, in a file and in a CI log. */
import { describe, expect, it } from 'vitest'
import { Eta } from '../../ts/cli/eta.js'
import {
  bar,
  compact,
  duration,
  type Field,
  fitFields,
  formatTable,
  grouped,
  Ui,
  wantsColor,
  wantsLive,
} from '../../ts/cli/ui.js'
import { StringSink } from './helpers/capture.js'

// biome-ignore lint/suspicious/noControlCharactersInRegex: escape codes are what is looked for
const ESCAPES = /\u001b/
const terminal = new StringSink(true)
const pipe = new StringSink(false)

describe('colours', () => {
  it.each([
    [terminal, {}, true],
    [pipe, {}, false],
    [terminal, { NO_COLOR: '1' }, false],
    [terminal, { NO_COLOR: '' }, true],
    [pipe, { FORCE_COLOR: '1' }, true],
    [terminal, { FORCE_COLOR: '0' }, false],
    [pipe, { FORCE_COLOR: '1', NO_COLOR: '1' }, false],
    [terminal, { TERM: 'dumb' }, false],
  ])('case %#', (sink, env, wanted) => {
    expect(wantsColor(sink, env as Record<string, string>)).toBe(wanted)
  })

  it('a line is redrawn on a terminal only, and not in CI', () => {
    expect(wantsLive(terminal, {})).toBe(true)
    expect(wantsLive(pipe, {})).toBe(false)
    expect(wantsLive(terminal, { CI: 'true' })).toBe(false)
    expect(wantsLive(terminal, { TERM: 'dumb' })).toBe(false)
  })
})

const fields: Field[] = [
  { text: ' 2/350', rank: 0 },
  { text: bar(0.58, 20), rank: 95 },
  { text: '181/313', rank: 4 },
  { text: 'loss 5.871', rank: 1 },
  { text: 'top1 12.3', rank: 5 },
  { text: 'lr 0.41', rank: 7 },
  { text: '21 510 img/s', rank: 2 },
  { text: 'wait 0.3 %', rank: 6 },
  { text: 'eta 0:26 / 6:04:40', rank: 3 },
]

describe('the live line', () => {
  it.each([60, 66, 80, 100, 200])('never wraps at %i columns and keeps what matters most', (width) => {
    const line = fitFields(fields, width)
    expect(line.length).toBeLessThan(width)
    expect(line).toContain(' 2/350')
    expect(line).toContain('loss 5.871')
    expect(line).toContain('img/s')
    expect(line).toContain('eta 0:26')
  })

  it('is drawn at most ten times a second and removed before a whole line', () => {
    const sink = new StringSink(true, 100)
    let now = 0
    const ui = new Ui(
      { stdout: sink, stderr: new StringSink(), env: {} },
      { json: false, quiet: false, verbosity: 0, now: () => now },
    )
    let drawn = 0
    const count = () => {
      drawn++
      return fields
    }
    for (; now < 1000; now += 10) ui.progress(count)
    expect(drawn).toBe(10)
    const before = sink.text.length
    ui.line('whole')
    expect(sink.text.slice(before)).toBe('\r\u001b[2Kwhole\n')
  })

  it('elsewhere is a plain line every 30 s or when due, without escape codes', () => {
    const sink = new StringSink(false)
    let now = 0
    const ui = new Ui(
      { stdout: sink, stderr: new StringSink(), env: {} },
      { json: false, quiet: false, verbosity: 0, now: () => now },
    )
    for (; now < 95_000; now += 100) ui.progress(() => fields)
    expect(sink.text.split('\n').length - 1).toBe(3)
    ui.progress(() => fields, true)
    expect(sink.text.split('\n').length - 1).toBe(4)
    expect(sink.text).not.toMatch(ESCAPES)
    expect(sink.text).not.toContain('━')
  })

  it('goes to stderr with --json and nowhere with --quiet', () => {
    const stdout = new StringSink()
    const stderr = new StringSink()
    new Ui({ stdout, stderr, env: {} }, { json: true, quiet: false, verbosity: 0 }).progress(() => fields, true)
    expect(stdout.text).toBe('')
    expect(stderr.text).toContain('loss')
    const quiet = new Ui({ stdout, stderr: new StringSink(), env: {} }, { json: false, quiet: true, verbosity: 0 })
    quiet.progress(() => fields, true)
    quiet.line('x')
    expect(stdout.text).toBe('')
  })
})

describe('warnings', () => {
  it('are said once and counted', () => {
    const stderr = new StringSink()
    const ui = new Ui({ stdout: new StringSink(), stderr, env: {} }, { json: false, quiet: false, verbosity: 0 })
    for (let i = 0; i < 42; i++) ui.warn('EFF_DATA_DECODE', `file ${i} is broken`)
    ui.warningsLeft()
    ui.warningsLeft()
    expect(stderr.text).toBe('warning  file 0 is broken\nwarning  EFF_DATA_DECODE: and 41 more\n')
  })
})

describe('numbers and tables', () => {
  it('durations, groups, significant digits', () => {
    expect([5, 754, 3723, Number.NaN].map(duration)).toEqual(['0:05', '12:34', '1:02:03', '-'])
    expect([0, 999, 1000, 1281167, -4096].map(grouped)).toEqual(['0', '999', '1 000', '1 281 167', '-4 096'])
    expect([0, 0.001, 0.41, 1e-5, 1.5e-7, 12345.678, 2e6].map(compact)).toEqual([
      '0',
      '0.001',
      '0.41',
      '1e-5',
      '1.5e-7',
      '12350',
      '2e6',
    ])
    expect([0, 0.5, 1, 2].map((s) => bar(s, 4))).toEqual(['────', '━━──', '━━━━', '━━━━'])
  })

  it('columns are as wide as their widest cell', () => {
    expect(
      formatTable(
        [{ title: 'op' }, { title: 'ms', align: 'right' }],
        [
          ['conv2d', '1.25'],
          ['add', '10.00'],
        ],
      ),
    ).toEqual(['op         ms', 'conv2d   1.25', 'add     10.00'])
  })
})

describe('time left', () => {
  it('is the mean step, the first ones left out, plus the ends of epochs', () => {
    const eta = new Eta()
    let now = 0
    const stepAfter = (ms: number): void => {
      now += ms
      eta.step(now)
    }
    for (const ms of [0, 5000, 900]) stepAfter(ms)
    expect(eta.seconds(10, 0)).toBeUndefined()
    for (let i = 0; i < 20; i++) stepAfter(100)
    expect(eta.seconds(50, 0)).toBeCloseTo(5, 9)
    eta.epochEnd(now)
    stepAfter(2100)
    stepAfter(100)
    expect(eta.seconds(50, 2)).toBeCloseTo(5 + 2 * 2.1, 9)
  })
})
