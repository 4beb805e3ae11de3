/** From the windows of all contenders to the rows of the table, and the table as Markdown. */

export const median = (xs) => {
  const sorted = [...xs].sort((a, b) => a - b)
  const mid = sorted.length >> 1
  return sorted.length % 2 ? sorted[mid] : (sorted[mid - 1] + sorted[mid]) / 2
}

/** A contender's figure in a row: median rate, or peak memory. */
const figure = (row, c) => (row.measure === 'memory' ? c.peakBytes : median(c.windows))

/** Less memory is better, more images/s are. */
const beats = (row, a, b) => (row.measure === 'memory' ? a <= b : a >= b)

/** {ours, peer, peerLabel, value, spread, must, goal, met}; without a peer that ran, only `ours`. */
export function compareRow(row, contenders, amx) {
  const ours = contenders[row.ours]
  if (!ours?.windows.length) return { error: ours?.error ?? 'not run' }
  const result = { ours: figure(row, ours), measure: row.measure ?? 'rate' }
  const peers = row.peers.map((p) => contenders[p]).filter((c) => c?.windows.length)
  const failed = row.peers.map((p) => contenders[p]).filter((c) => c?.error)
  if (failed.length > 0) result.failed = failed.map((c) => `${c.label}: ${c.error}`)
  if (peers.length === 0) return result
  const best = peers.reduce((a, b) => (beats(row, figure(row, a), figure(row, b)) ? a : b))
  const [must, goal] = amx ? row.target.amx : row.target.other
  const value = result.ours / figure(row, best)
  const turns = row.measure === 'memory' ? [value] : ours.windows.map((w, i) => w / best.windows[i]).filter(Number.isFinite)
  const met = beats(row, value, goal) ? 'goal' : beats(row, value, must) ? 'must' : 'no'
  return {
    ...result,
    peer: figure(row, best),
    peerLabel: best.label,
    value,
    spread: [Math.min(...turns), Math.max(...turns)],
    must,
    goal,
    met,
  }
}

const show = (measure, x) => (measure === 'memory' ? `${(x / 2 ** 20).toFixed(0)} MiB` : `${x.toFixed(x < 10 ? 2 : 1)} img/s`)

function rowLine(row) {
  const r = row.result
  if (r.error) return `| ${row.work} | failed: ${r.error} | | | | | |`
  const ours = show(r.measure, r.ours)
  if (r.peer === undefined) return `| ${row.work} | ${ours} | none ran | | | | |`
  const spread = r.measure === 'memory' ? '' : ` (${r.spread.map((x) => x.toFixed(2)).join('-')})`
  const failed = r.failed ? `; failed: ${r.failed.map((f) => f.split(':')[0]).join(', ')}` : ''
  const peer = `${show(r.measure, r.peer)}, ${r.peerLabel}${failed}`
  return `| ${row.work} | ${ours} | ${peer} | ${r.value.toFixed(2)}x${spread} | ${r.must}x | ${r.goal}x | ${r.met} |`
}

const contenderLine = (group, c) =>
  c.error
    ? `| ${group} | ${c.label} | failed: ${c.error.slice(0, 200).replaceAll('|', '/')} | | |`
    : `| ${group} | ${c.label} | ${median(c.windows).toFixed(2)} (${Math.min(...c.windows).toFixed(2)}-${Math.max(...c.windows).toFixed(2)}) | ${c.windows.length} x ${c.steps} | ${(c.peakBytes / 2 ** 20).toFixed(0)} |`

/** The table of a report, as the screen, bench/results and docs/benchmarks.md show it. */
export function markdown(report) {
  const m = report.machine
  const versions = Object.entries(report.versions).map(([k, v]) => `${k} ${v}`)
  const contenders = Object.entries(report.groups).flatMap(([id, group]) => Object.values(group).map((c) => contenderLine(id, c)))
  const starts = (report.startup ?? []).map(
    (s) => `| ${s.work} | ${s.ms.toFixed(0)} ms | | | ${s.must} ms | | ${s.ms <= s.must ? 'must' : 'no'} |`,
  )
  const cores = `${m.cpus} CPUs, ${m.memoryGiB} GiB, Linux ${m.kernel}`
  const load = `load average before the start ${m.load.toFixed(1)}`
  const part = (title, head, lines) => {
    const columns = `|${' --- |'.repeat(head.split(' | ').length)}`
    return lines.length > 0 ? `\n${title}| ${head} |\n${columns}\n${lines.join('\n')}\n` : ''
  }
  const rows = part('', 'work | effnet | best peer | ratio (lowest-highest round) | must | goal | met', [
    ...report.rows.map(rowLine),
    ...starts,
  ])
  const all = part(
    'All contenders:\n\n',
    'group | contender | images/s: median (slowest-fastest window) | windows x steps | peak MiB',
    contenders,
  )
  return `${report.date}, commit ${report.commit}. ${m.cpu} (${m.family}; ${m.isa.join(', ')}), ${cores}, ${load}.
${[`Node ${m.node}`, ...versions].join(', ')}; ${report.threads} threads each. Targets of a machine ${m.amx ? 'with' : 'without'} AMX.
${rows}${all}
Made by \`${report.command}\` in ${Math.round(report.seconds / 60)} minutes.
`
}
