/** Charts as SVG text; scales and paths come from d3, colours from the page's CSS. */

export interface Series {
  name: string
  /** Number of a CSS class `s0`... */
  color: number
  points: readonly (readonly [x: number, y: number])[]
}

export interface ChartOptions {
  title: string
  xLabel: string
  series: readonly Series[]
  /** How y ticks are written. x ticks are whole numbers: epochs or steps. */
  format?: (value: number) => string
}

const WIDTH = 460
const HEIGHT = 240
const MARGIN = { top: 8, right: 12, bottom: 34, left: 56 }

export const escapeHtml = (text: string): string => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`)

const number = (value: number): string => Number(value.toPrecision(4)).toString()

/** A line chart with axes, grid and legend; empty text when there is nothing to draw. */
export async function lineChart(options: ChartOptions): Promise<string> {
  // Imported here: d3 is needed for reports only, and is ESM only.
  const [{ scaleLinear }, { line }] = await Promise.all([import('d3-scale'), import('d3-shape')])
  const { title, xLabel, series, format = number } = options
  const shown = series
    .map((s) => ({
      ...s,
      points: s.points.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y)),
    }))
    .filter((s) => s.points.length > 0)
  if (shown.length === 0) return ''
  const all = shown.flatMap((s) => s.points)
  const [x0, x1] = extent(all.map((p) => p[0]))
  const [y0, y1] = extent(all.map((p) => p[1]))
  const x = scaleLinear([x0, x1], [MARGIN.left, WIDTH - MARGIN.right])
  const y = scaleLinear([y0, y1], [HEIGHT - MARGIN.bottom, MARGIN.top]).nice(5)
  const path = line<readonly [number, number]>()
    .x((p) => x(p[0]))
    .y((p) => y(p[1]))
  const yTicks = y.ticks(5).slice(0, 12)
  const parts = [
    ...yTicks.map(
      (t) =>
        `<line class="grid" x1="${MARGIN.left}" x2="${WIDTH - MARGIN.right}" y1="${y(t).toFixed(1)}" y2="${y(t).toFixed(1)}"/>` +
        `<text class="tick" x="${MARGIN.left - 6}" y="${(y(t) + 4).toFixed(1)}" text-anchor="end">${format(t)}</text>`,
    ),
    ...x
      .ticks(6)
      .filter(Number.isInteger)
      .map(
        (t) =>
          `<text class="tick" x="${x(t).toFixed(1)}" y="${HEIGHT - MARGIN.bottom + 16}" text-anchor="middle">${number(t)}</text>`,
      ),
    `<text class="tick" x="${(MARGIN.left + WIDTH - MARGIN.right) / 2}" y="${HEIGHT - 4}" text-anchor="middle">${escapeHtml(xLabel)}</text>`,
    ...shown.map((s) =>
      s.points.length === 1
        ? `<circle class="dot s${s.color}" cx="${x(s.points[0]![0]).toFixed(1)}" cy="${y(s.points[0]![1]).toFixed(1)}" r="3"/>`
        : `<path class="line s${s.color}" d="${path(s.points) ?? ''}"/>`,
    ),
  ]
  const legend = shown.map((s) => `<span class="key"><i class="s${s.color}"></i>${escapeHtml(s.name)}</span>`).join('')
  return (
    `<figure><figcaption>${escapeHtml(title)}${legend}</figcaption>` +
    `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${escapeHtml(title)}">${parts.join('')}</svg></figure>`
  )
}

/** A little room around a flat line. */
function extent(values: readonly number[]): [number, number] {
  let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]
  for (const v of values) {
    low = Math.min(low, v)
    high = Math.max(high, v)
  }
  return low === high ? [low - Math.abs(low || 1) * 0.05, high + Math.abs(high || 1) * 0.05] : [low, high]
}

/** Row-normalised confusion matrix; cells carry counts as tooltips, and as text where there is room. */
export function confusionSvg(classes: readonly string[], rows: readonly (readonly number[])[]): string {
  const k = classes.length
  const cell = k <= 12 ? 36 : k <= 30 ? 22 : Math.max(4, Math.floor(700 / k))
  const named = k <= 60
  const left = named ? 130 : 10
  const top = named ? 110 : 10
  const size = k * cell
  const parts: string[] = []
  for (const [i, row] of rows.entries()) {
    const total = row.reduce((a, b) => a + b, 0)
    for (const [j, count] of row.entries()) {
      if (count === 0 && k > 30) continue
      const share = total > 0 ? count / total : 0
      const title = `<title>${escapeHtml(`${classes[i]} read as ${classes[j]}: ${count} of ${total}`)}</title>`
      const kind = i === j ? 'hit' : 'miss'
      // A rare confusion must still be seen.
      const opacity = count === 0 ? 0 : (0.12 + 0.88 * share).toFixed(3)
      parts.push(
        `<rect class="${kind}" x="${left + j * cell}" y="${top + i * cell}" width="${cell - 1}" height="${cell - 1}" fill-opacity="${opacity}">${title}</rect>`,
      )
      if (k <= 30 && count > 0) {
        const strong = share > 0.55 ? ' strong' : ''
        parts.push(
          `<text class="count${strong}" x="${left + (j + 0.5) * cell}" y="${top + (i + 0.5) * cell + 4}" text-anchor="middle">${count}</text>`,
        )
      }
    }
  }
  if (named) {
    for (const [i, name] of classes.entries()) {
      const short = escapeHtml(name.length > 18 ? `${name.slice(0, 17)}…` : name)
      const mid = (i + 0.5) * cell
      parts.push(`<text class="tick" x="${left - 6}" y="${top + mid + 4}" text-anchor="end">${short}</text>`)
      parts.push(`<text class="tick" transform="translate(${left + mid + 4} ${top - 6}) rotate(-60)">${short}</text>`)
    }
  }
  const width = left + size + 60
  return `<svg class="matrix" viewBox="0 0 ${width} ${top + size + 10}" style="max-width:${width}px" role="img" aria-label="Confusion matrix: rows are true classes, columns predicted ones">${parts.join('')}</svg>`
}
