import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { confusionSvg, lineChart } from '../../ts/report/charts.js'
import { parseCsv, renderReport, writeReport } from '../../ts/report/report.js'
import type { FitResult } from '../../ts/train/types.js'

const root = mkdtempSync(path.join(os.tmpdir(), 'effnet-report-'))
afterAll(() => rmSync(root, { recursive: true, force: true }))

const result: FitResult = {
  status: 'finished',
  reason: 'epochs',
  epoch: 2,
  step: 20,
  metrics: { 'train/loss': 0.5, 'val/top1': 75, 'val/top5': 100, 'val/loss': 0.6 },
  best: { metric: 'val/top1', value: 75, epoch: 2, step: 20 },
  imagesPerS: 100,
  dataWait: 0.01,
  elapsedMs: 65_000,
  badFiles: [{ path: '/data/<b>.jpg', code: 'EFF_DATA_DECODE', message: 'cut & broken' }],
}
const details = {
  classes: ['<script>alert(1)</script>', 'b'],
  perClass: [
    { count: 2, top1: 1, top5: 2, predicted: 1 },
    { count: 2, top1: 2, top5: 2, predicted: 3 },
  ],
  worst: [{ path: '/nowhere/a.jpg', label: 0, predicted: 1, score: 0.9, loss: 2.3 }],
  confusion: [
    [1, 1],
    [0, 2],
  ],
}
const files = {
  dir: '/runs/x',
  result,
  details,
  epochs: [
    { epoch: 1, step: 10, 'train/loss': 1, 'val/loss': 0.9, 'val/top1': 50 },
    { epoch: 2, step: 20, 'train/loss': 0.5, 'val/loss': 0.6, 'val/top1': 75 },
  ],
  steps: [{ step: 10, loss: 1, lr: 1e-3, imagesPerS: 90, dataWait: 0 }],
  resolved: { model: 'efficientnet_b0', seed: 3, optimizer: { lr: 0.001 } },
  environment: { command: ['effnet', 'train', '--data', "it's here"] },
}

describe('report', () => {
  it('holds the verdict, curves, classes, confusion, bad files, configuration and the command', async () => {
    const html = await renderReport(files)
    for (const text of [
      '75.00 %',
      'Confusion',
      'Worst errors',
      'optimizer.lr',
      'cut &#38; broken',
      '0:01:05',
      '--data &#39;it&#39;\\&#39;&#39;s here&#39;',
    ]) {
      expect(html.includes(text), text).toBe(true)
    }
    expect(html.match(/<svg/g)!.length).toBeGreaterThanOrEqual(4)
  })

  it('loads nothing and lets no name become markup', async () => {
    const html = await renderReport(files)
    expect(html).not.toContain('<script')
    expect(html).not.toContain('<b>.jpg')
    expect(html).not.toMatch(/(src|href)="(?!data:)/)
    expect(html).not.toMatch(/url\(|@import/)
  })

  it('does with what there is: no validation, no steps, one epoch', async () => {
    const { best: _, ...short } = { ...result, metrics: { 'train/loss': 0.5 } }
    const html = await renderReport({ ...files, result: short, details: null, epochs: files.epochs.slice(0, 1), steps: [] })
    expect(html).toContain('n/a')
    expect(html).not.toContain('NaN')
    expect(html).not.toContain('undefined')
  })

  it('is made again from the files of a run folder', async () => {
    writeFileSync(path.join(root, 'results.json'), JSON.stringify({ result, details }))
    writeFileSync(path.join(root, 'metrics.csv'), 'epoch,step,val/top1\n1,10,50\n2,20,\n')
    const file = await writeReport(root)
    expect(readFileSync(file, 'utf8')).toContain('<h1>')
    await expect(writeReport(path.join(root, 'none'))).rejects.toThrow(expect.objectContaining({ code: 'EFF_CKPT_MISSING' }))
  })

  it('of a run that diverged says n/a for every number that is none, and draws the others', async () => {
    const dir = mkdtempSync(path.join(root, 'diverged-'))
    const write = (name: string, text: string) => writeFileSync(path.join(dir, name), text)
    const nan = (key: string, value: unknown) =>
      typeof value === 'number' && key !== 'epoch' && key !== 'label' ? Number.NaN : value
    const bare = JSON.stringify({ result, details: { ...details, confusion: null, worst: [] } }, nan)
    // One worst error stays an error: its classes are indices.
    const lost = JSON.parse(bare) as { result: FitResult; details: typeof details }
    lost.details.worst = [{ path: '/nowhere/a.jpg', label: 0, predicted: 1, score: Number.NaN, loss: Number.NaN }]
    write('results.json', JSON.stringify(lost))
    write(
      'metrics.csv',
      'epoch,step,train/loss,val/loss,val/top1\n1,10,2.5,,40\n2,20,NaN,Infinity,\n3,30,2,-Infinity,null\n,40\n',
    )
    const step = (loss: number | null) => `${JSON.stringify({ step: 1, loss, lr: Number.NaN, imagesPerS: loss })}\n`
    write('steps.jsonl', `${step(3)}${step(null)}{}\nnull\n{"step":9,"lo`)
    const html = readFileSync(await writeReport(dir), 'utf8')
    for (const name of ['Top-1', 'Top-5', 'Validation loss', 'Training loss', 'Images/s', 'Data wait', 'Time']) {
      expect(html).toContain(`<b>n/a</b><span>${name}</span>`)
    }
    expect(html).toContain('<td>n/a</td>')
    expect(html).toContain('read as <b>b</b> (n/a)')
    expect(html).toContain('aria-label="Loss"')
    expect(html).toContain('aria-label="Loss of a step"')
    expect(html).not.toContain('aria-label="Learning rate"')
    // Two of four losses are numbers: a line; one accuracy: a dot.
    expect(html.match(/<path class="line s0" d="[^"]+"/g)).toHaveLength(1)
    expect(html).toContain('<circle class="dot s1"')
    expect(html).not.toMatch(/NaN|Infinity|null|undefined/)
  })

  it('reads metrics.csv with empty cells', () => {
    expect(parseCsv('epoch,val/top1\n1,50\n2,\n')).toEqual([{ epoch: 1, 'val/top1': 50 }, { epoch: 2 }])
  })
})

describe('charts', () => {
  it('leave out what is no number, and themselves when nothing is left', async () => {
    const series = [{ name: 'a', color: 0, points: [[1, Number.NaN]] as [number, number][] }]
    expect(await lineChart({ title: 't', xLabel: 'x', series })).toBe('')
    const some = [
      {
        name: 'a',
        color: 0,
        points: [
          [1, 2],
          [2, Number.POSITIVE_INFINITY],
          [3, 4],
        ] as [number, number][],
      },
    ]
    const svg = await lineChart({ title: 't', xLabel: 'x', series: some })
    expect(svg).toContain('class="line s0"')
    expect(svg).not.toMatch(/NaN|Infinity/)
  })

  it('draw a confusion matrix of many classes without text in its cells', () => {
    const k = 100
    const svg = confusionSvg(
      Array.from({ length: k }, (_, i) => `c${i}`),
      Array.from({ length: k }, (_, i) => Array.from({ length: k }, (_, j) => (i === j ? 9 : 0))),
    )
    expect(svg.match(/<rect/g)!.length).toBe(k)
    expect(svg).not.toContain('class="count')
  })
})
