import { describe, expect, it } from 'vitest'
import { markdown, merged } from '../../bench/lib/table.mjs'

const machine = {
  cpu: 'CPU',
  family: 'family 1',
  isa: ['avx2'],
  amx: false,
  cpus: 2,
  memoryGiB: 8,
  kernel: '6',
  node: '20',
  load: 0.5,
}
const report = (commit, groups, more = {}) => ({
  date: '2026-01-02',
  commit,
  machine,
  threads: 2,
  command: `npm run bench -- ${commit}`,
  versions: {},
  rows: groups.map((id) => ({ id: `row-${id}`, work: `work ${id}`, result: { ours: 1 } })),
  groups: Object.fromEntries(
    groups.map((id) => [id, { ours: { label: `effnet of ${commit}`, windows: [1], steps: 1, peakBytes: 0 } }]),
  ),
  seconds: 600,
  ...more,
})
const order = ['a', 'b', 'c'].map((id) => ({ id: `row-${id}` }))

describe('rows that are put into the last result', () => {
  const whole = report('old', ['a', 'b', 'c'], { startup: [{ work: 'start', ms: 1, must: 2 }] })
  const next = report('new', ['b'], { date: '2026-01-03', seconds: 60, machine: { ...machine, load: 3 } })
  const both = merged(whole, next, order)

  it('leave the others with the commit, date, command and load they were measured with', () => {
    expect(both.rows.map((r) => r.id)).toEqual(['row-a', 'row-b', 'row-c'])
    expect(both.runs).toMatchObject({
      a: { commit: 'old', date: '2026-01-02', load: 0.5, command: 'npm run bench -- old', seconds: 600 },
      b: { commit: 'new', date: '2026-01-03', load: 3, command: 'npm run bench -- new', seconds: 60 },
      c: { commit: 'old' },
      startup: { commit: 'old' },
    })
    const text = markdown(both)
    expect(text).toContain('- a, c, startup: 2026-01-02, commit old, load average before the start 0.5')
    expect(text).toContain('- b: 2026-01-03, commit new, load average before the start 3.0: `npm run bench -- new` in 1 minutes')
  })

  it('keep it when others come after them', () => {
    const third = merged(both, report('third', ['c']), order)
    expect(Object.values(third.runs).map((run) => run.commit)).toEqual(['old', 'new', 'third', 'old'])
  })

  it('of one run are told once', () => {
    const text = markdown(whole)
    expect(text.match(/commit old/g)).toHaveLength(1)
    expect(text).toContain('in 10 minutes.')
  })
})
