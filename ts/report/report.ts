/** report.html of a run folder: one file with everything in it, made from the folder's own files, no network. */

import path from 'node:path'
import { EffnetError } from '../errors.js'
import { cpuDecodedText, unlockedText } from '../machine_text.js'
import { readOptional, writeAtomic } from '../train/files.js'
import type { EvaluateDetails, FitResult } from '../train/types.js'
import { parseYaml } from '../train/yaml.js'
import { confusionSvg, escapeHtml, lineChart, type Series } from './charts.js'
import { STYLE } from './style.js'
import { thumbnails } from './thumbnails.js'

export interface StoredDetails extends Omit<EvaluateDetails, 'confusion'> {
  confusion: number[][] | null
}

/**
 * A number of a file. JSON has no NaN and no infinity: they come back as null, and a cell or key may be missing. Each is shown as
 * n/a and left out of the curves.
 */
type Stored = number | null | undefined

export interface RunFiles {
  dir: string
  result: FitResult
  details: StoredDetails | null
  /** Rows of metrics.csv. */
  epochs: Record<string, number>[]
  /** Lines of steps.jsonl. */
  steps: Partial<Record<'step' | 'loss' | 'lr' | 'imagesPerS' | 'dataWait', Stored>>[]
  resolved: Record<string, unknown>
  environment: Record<string, unknown>
}

/** Curves are thinned to this many points. */
const MAX_POINTS = 600
const WORST_SHOWN = 16

/**
 * Writes `report.html` and returns its path.
 * @throws EFF_CKPT_MISSING when the folder holds no results of a run
 */
export async function writeReport(dir: string): Promise<string> {
  const files = await readRun(dir)
  const file = path.join(files.dir, 'report.html')
  await writeAtomic(file, await renderReport(files))
  return file
}

async function readRun(given: string): Promise<RunFiles> {
  const dir = path.resolve(given)
  const read = (name: string) => readOptional(path.join(dir, name))
  const results = await read('results.json')
  if (results === undefined) {
    throw new EffnetError('EFF_CKPT_MISSING', `${dir}: no results of a run (results.json)`, { details: { path: dir } })
  }
  const { result, details } = JSON.parse(results) as Pick<RunFiles, 'result' | 'details'>
  const environment = JSON.parse((await read('environment.json')) ?? '{}') as Record<string, unknown>
  const resolved = await parseYaml(path.join(dir, 'resolved.yaml'), (await read('resolved.yaml')) ?? '')
  const steps = ((await read('steps.jsonl')) ?? '').split('\n').flatMap(parseStep)
  return { dir, result, details, epochs: parseCsv((await read('metrics.csv')) ?? ''), steps, resolved, environment }
}

/** Nothing of a line that was cut short. */
function parseStep(line: string): RunFiles['steps'] {
  try {
    const step = JSON.parse(line) as RunFiles['steps'][number] | null
    return step === null ? [] : [step]
  } catch {
    return []
  }
}

/** Numbers only, as metrics.csv has them. */
export function parseCsv(text: string): Record<string, number>[] {
  const [header, ...lines] = text.split('\n').filter((line) => line !== '')
  const names = header?.split(',') ?? []
  return lines.map((line) => {
    const cells = line.split(',')
    const row: Record<string, number> = {}
    for (const [i, name] of names.entries()) if (cells[i] !== undefined && cells[i] !== '') row[name] = Number(cells[i])
    return row
  })
}

export async function renderReport(files: RunFiles): Promise<string> {
  const { result, details } = files
  const model = String(files.resolved['model'] ?? 'model')
  const sections = [
    verdict(files),
    await curves(files),
    details ? classTable(details) : '',
    details?.confusion ? confusion(details, details.confusion) : '',
    details ? await worstErrors(details) : '',
    health(files),
    table('Configuration', flatten(files.resolved)),
    table('Environment', flatten(files.environment)),
    reproduce(files),
  ]
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>${escapeHtml(`${model}: ${headline(result)}`)}</title><style>${STYLE}</style></head>
<body><main>${sections.join('\n')}</main></body></html>
`
}

const known = (value: Stored): value is number => typeof value === 'number' && Number.isFinite(value)
const fixed = (value: Stored, digits = 4): string => (known(value) ? value.toFixed(digits) : 'n/a')
const percent = (value: Stored): string => (known(value) ? `${fixed(value, 2)} %` : 'n/a')
const share = (value: Stored): string => percent(known(value) ? 100 * value : value)
const count = (value: Stored): string => (known(value) ? String(value) : 'n/a')

function headline(result: FitResult): string {
  const { best, metrics } = result
  if (best) return `best ${best.metric} ${fixed(best.value, best.metric.endsWith('loss') ? 4 : 2)} in epoch ${count(best.epoch)}`
  const loss = metrics['train/loss']
  return loss === undefined ? result.status : `training loss ${fixed(loss)}`
}

function duration(ms: Stored): string {
  if (!known(ms)) return 'n/a'
  const s = Math.round(ms / 1000)
  const parts = [Math.floor(s / 3600), Math.floor(s / 60) % 60, s % 60]
  return parts.map((n, i) => (i === 0 ? String(n) : String(n).padStart(2, '0'))).join(':')
}

function verdict({ result, resolved, dir }: RunFiles): string {
  const { metrics, best } = result
  const facts: [string, string][] = [
    ['Top-1', percent(metrics['val/top1'])],
    ['Top-5', percent(metrics['val/top5'])],
    ['Validation loss', fixed(metrics['val/loss'])],
    ['Training loss', fixed(metrics['train/loss'])],
    ['Images/s', fixed(result.imagesPerS, 1)],
    ['Data wait', share(result.dataWait)],
    ['Time', duration(result.elapsedMs)],
  ]
  const ema = metrics['val_ema/top1']
  if (ema !== undefined) facts.splice(1, 0, ['Top-1, moving average', percent(ema)])
  const ended = result.status === 'finished' ? `finished (${result.reason})` : `interrupted (${result.reason})`
  const chosen = best
    ? ` Best ${escapeHtml(best.metric)}: <b>${fixed(best.value, 2)}</b> in epoch ${count(best.epoch)} (step ${count(best.step)}).`
    : ''
  return `<header><h1>${escapeHtml(String(resolved['model'] ?? 'Run'))}</h1>
<p class="sub">${escapeHtml(path.basename(dir))} · ${escapeHtml(ended)} after ${count(result.epoch)} epochs, ${count(result.step)} steps.${chosen}</p></header>
<section class="facts">${facts.map(([k, v]) => `<div><b>${v}</b><span>${k}</span></div>`).join('')}</section>`
}

function thin<T>(list: readonly T[]): readonly T[] {
  if (list.length <= MAX_POINTS) return list
  const stride = list.length / MAX_POINTS
  return Array.from({ length: MAX_POINTS }, (_, i) => list[Math.floor(i * stride)]!)
}

const point = (x: Stored, y: Stored): [number, number][] => (known(x) && known(y) ? [[x, y]] : [])

async function curves({ epochs, steps }: RunFiles): Promise<string> {
  const ofEpoch = (name: string, column: string, color: number): Series => ({
    name,
    color,
    points: thin(epochs).flatMap((row) => point(row['epoch'], row[column])),
  })
  const ofStep = (name: string, key: 'loss' | 'lr' | 'imagesPerS', color: number): Series => ({
    name,
    color,
    points: thin(steps).flatMap((s) => point(s.step, s[key])),
  })
  const charts = await Promise.all([
    lineChart({
      title: 'Loss',
      xLabel: 'epoch',
      series: [ofEpoch('train', 'train/loss', 0), ofEpoch('val', 'val/loss', 1), ofEpoch('val, average', 'val_ema/loss', 2)],
    }),
    lineChart({
      title: 'Accuracy, %',
      xLabel: 'epoch',
      series: [
        ofEpoch('train top-1', 'train/top1', 0),
        ofEpoch('val top-1', 'val/top1', 1),
        ofEpoch('val top-5', 'val/top5', 3),
        ofEpoch('val top-1, average', 'val_ema/top1', 2),
      ],
    }),
    lineChart({ title: 'Loss of a step', xLabel: 'step', series: [ofStep('train', 'loss', 0)] }),
    lineChart({ title: 'Learning rate', xLabel: 'step', series: [ofStep('lr', 'lr', 3)], format: (v) => v.toExponential(1) }),
    lineChart({ title: 'Images/s', xLabel: 'step', series: [ofStep('images/s', 'imagesPerS', 4)] }),
  ])
  const drawn = charts.filter((c) => c !== '')
  return drawn.length === 0 ? '' : `<section><h2>Curves</h2><div class="charts">${drawn.join('')}</div></section>`
}

function classTable(details: StoredDetails): string {
  const worst = (c: ClassCounts): number => rate(c) ?? Number.POSITIVE_INFINITY
  const rows = details.perClass.map((c, i) => ({ ...c, name: details.classes[i]! })).sort((a, b) => worst(a) - worst(b) || 0)
  const cells = rows
    .map((c) => {
      const recall = rate(c)
      const bar = `<span class="bar"><i style="width:${(100 * (recall ?? 0)).toFixed(1)}%"></i></span>`
      const precision = share(known(c.predicted) && c.predicted > 0 ? c.top1 / c.predicted : undefined)
      return `<tr><th scope="row">${escapeHtml(c.name)}</th><td>${count(c.count)}</td><td>${bar}${share(recall)}</td><td>${precision}</td></tr>`
    })
    .join('')
  const head = '<tr><th>Class</th><th>Images</th><th>Recall (top-1)</th><th>Precision</th></tr>'
  return `<section><h2>Classes, worst first</h2><div class="scroll"><table><thead>${head}</thead><tbody>${cells}</tbody></table></div></section>`
}

type ClassCounts = StoredDetails['perClass'][number]
/** Undefined for a class without images. */
const rate = (c: ClassCounts): number | undefined =>
  known(c.top1) && known(c.count) && c.count > 0 ? c.top1 / c.count : undefined

function confusion(details: StoredDetails, rows: number[][]): string {
  const pairs = rows
    .flatMap((row, i) => row.map((times, j) => ({ i, j, times })))
    .filter((p) => p.i !== p.j && p.times > 0)
    .sort((a, b) => b.times - a.times)
    .slice(0, 10)
    .map((p) => `<li>${escapeHtml(details.classes[p.i]!)} read as ${escapeHtml(details.classes[p.j]!)}: ${p.times}</li>`)
    .join('')
  const list = pairs === '' ? '' : `<h3>Most confused</h3><ol>${pairs}</ol>`
  return `<section><h2>Confusion</h2><p class="sub">Rows are true classes, columns predictions.</p>${confusionSvg(details.classes, rows)}${list}</section>`
}

async function worstErrors(details: StoredDetails): Promise<string> {
  const worst = details.worst.slice(0, WORST_SHOWN)
  if (worst.length === 0) return ''
  const pictures = await thumbnails(worst.map((w) => w.path))
  const cards = worst.map((w, i) => {
    const picture = pictures[i]
    const image = picture ? `<img alt="" src="${picture}">` : '<div class="none"></div>'
    const text = `${escapeHtml(details.classes[w.label]!)} read as <b>${escapeHtml(details.classes[w.predicted]!)}</b> (${share(w.score)})`
    return `<div class="card" title="${escapeHtml(w.path)}">${image}<span>${text}</span></div>`
  })
  return `<section><h2>Worst errors</h2><div class="cards">${cards.join('')}</div></section>`
}

function health({ result, details }: RunFiles): string {
  const bad = result.badFiles
  const rows = bad
    .slice(0, 20)
    .map((b) => `<tr><td>${escapeHtml(b.path)}</td><td>${escapeHtml(b.code)}</td><td>${escapeHtml(b.message)}</td></tr>`)
    .join('')
  const counts = details?.perClass.map((c) => c.count).filter((n) => known(n) && n > 0) ?? []
  const imbalance =
    counts.length > 0 ? `Largest validation class / smallest: ${(Math.max(...counts) / Math.min(...counts)).toFixed(1)}.` : ''
  const body =
    bad.length === 0
      ? `<p>No unreadable files. ${imbalance}</p>`
      : `<p>${bad.length} unreadable files were skipped (bad_files.csv). ${imbalance}</p><div class="scroll"><table><tbody>${rows}</tbody></table></div>`
  const onCpu = result.cpuDecodedFiles ? `<p>${cpuDecodedText(result.cpuDecodedFiles)}.</p>` : ''
  const unlocked = result.unlockedBytes ? `<p>${unlockedText(result.unlockedBytes)}.</p>` : ''
  return `<section><h2>Data</h2>${body}${onCpu}${unlocked}</section>`
}

/** `a.b` for nested keys. */
function flatten(value: unknown, prefix = ''): [string, string][] {
  if (value !== null && typeof value === 'object' && !Array.isArray(value)) {
    return Object.entries(value).flatMap(([key, v]) => flatten(v, prefix === '' ? key : `${prefix}.${key}`))
  }
  return [[prefix, typeof value === 'string' ? value : JSON.stringify(value)]]
}

function table(title: string, rows: readonly [string, string][]): string {
  if (rows.length === 0) return ''
  const body = rows.map(([k, v]) => `<tr><th scope="row">${escapeHtml(k)}</th><td>${escapeHtml(v ?? '')}</td></tr>`).join('')
  return `<section><details><summary><h2>${title}</h2></summary><div class="scroll"><table>${`<tbody>${body}</tbody>`}</table></div></details></section>`
}

function reproduce({ environment, resolved }: RunFiles): string {
  const command = environment['command']
  const line = Array.isArray(command) ? command.map((word) => quote(String(word))).join(' ') : undefined
  const how = line
    ? `<pre>${escapeHtml(line)}</pre>`
    : '<p>The values of resolved.yaml, given to a Trainer, make the same run.</p>'
  const same = `Seed ${escapeHtml(String(resolved['seed'] ?? 0))}; bit-identical with the same package version, instruction set and data.`
  return `<section><h2>How to reproduce</h2>${how}<p class="sub">${same}</p></section>`
}

const quote = (word: string): string => (/^[\w./:=@%+,-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`)
