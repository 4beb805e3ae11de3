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

/** What a figure is of beside the machine: kept with each group, as `--merge` puts groups of several runs into one report. */
export const runOf = ({ date, commit, command, seconds, machine }) => ({ date, commit, command, seconds, load: machine.load })

/** Of each group (and `startup`) the run it was measured in. */
function runsOf(report) {
  const parts = [...Object.keys(report.groups), ...(report.startup ? ['startup'] : [])]
  return Object.fromEntries(parts.map((part) => [part, report.runs?.[part] ?? runOf(report)]))
}

/** Rows of this run over those of the last, in the order of `order`; each group keeps the run it was measured in. */
export function merged(last, report, order) {
  const rows = order.map((r) => [...report.rows, ...last.rows].find((x) => x.id === r.id)).filter(Boolean)
  const groups = { ...last.groups, ...report.groups }
  const versions = { ...last.versions, ...report.versions }
  return { ...last, ...report, rows, groups, versions, runs: { ...runsOf(last), ...runsOf(report) } }
}

const madeBy = (run) =>
  `${run.date}, commit ${run.commit}, load average before the start ${run.load.toFixed(1)}: \`${run.command}\` in ${Math.round(run.seconds / 60)} minutes`

/** The runs of a report, one line each, with their groups where there are several. */
function runLines(report) {
  const groups = new Map()
  for (const [part, run] of Object.entries(runsOf(report))) {
    const line = madeBy(run)
    groups.set(line, [...(groups.get(line) ?? []), part])
  }
  if (groups.size === 1) return `${[...groups.keys()][0]}.\n`
  return [...groups].map(([line, parts]) => `- ${parts.join(', ')}: ${line}\n`).join('')
}

/** The table of a report, as the screen, bench/results and docs/benchmarks.md show it. */
export function markdown(report) {
  const m = report.machine
  const versions = Object.entries(report.versions).map(([k, v]) => `${k} ${v}`)
  const contenders = Object.entries(report.groups).flatMap(([id, group]) => Object.values(group).map((c) => contenderLine(id, c)))
  const starts = (report.startup ?? []).map(
    (s) => `| ${s.work} | ${s.ms.toFixed(0)} ms | | | ${s.must} ms | | ${s.ms <= s.must ? 'must' : 'no'} |`,
  )
  const cores = `${m.cpus} CPUs, ${m.memoryGiB} GiB, Linux ${m.kernel}`
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
  return `${m.cpu} (${m.family}; ${m.isa.join(', ')}), ${cores}.
${[`Node ${m.node}`, ...versions].join(', ')}; ${report.threads} threads each. Targets of a machine ${m.amx ? 'with' : 'without'} AMX.
${rows}${all}
${runLines(report)}`
}
