/** The console of a training run, from events alone. */
import { describe, expect, it } from 'vitest'
import { endBlock, TrainUi } from '../../ts/cli/train_ui.js'
import { Ui } from '../../ts/cli/ui.js'
import type { FitResult, ResolvedOptions, StepEvent, TrainerEvent } from '../../ts/train/types.js'
import { StringSink } from './helpers/capture.js'

const options: ResolvedOptions = {
  recipe: 'finetune',
  model: 'efficientnet_b0',
  numClasses: 10,
  precision: 'fp32',
  lossScale: null,
  halfWeightGradients: false,
  accumulate: 1,
  batchSize: 32,
  evalBatchSize: 32,
  imageSize: 64,
  evalImageSize: 64,
  optimizer: {
    name: 'adamw',
    lr: 1e-3,
    weightDecay: 0.01,
    momentum: 0.9,
    nesterov: false,
    alpha: 0.9,
    betas: [0.9, 0.999],
    eps: 1e-8,
  },
  schedule: { name: 'cosine', warmupEpochs: 1, rate: 0.97, decayEpochs: 2.4 },
  labelSmoothing: 0.1,
  ema: 0,
  augment: { scale: [0.35, 1], ratio: [0.75, 4 / 3], hflip: 0.5, interpolation: 'bicubic' },
  cropPct: 0.875,
  interpolation: 'bicubic',
  dropRate: 0,
  dropPathRate: 0,
  bnMomentum: 0.1,
  clipNorm: 0,
  maxEpochs: 4,
  maxSteps: null,
  maxTimeMs: null,
  seed: 7,
  deterministic: false,
  dataBackend: 'cpu',
  valEvery: 1,
  logEvery: 10,
  checkpoint: { everyEpochs: 1, everySteps: 0, everyMinutes: 0, monitor: 'val/top1', mode: 'max' },
  workers: 2,
  prefetch: 3,
  maxBad: null,
  exifOrientation: true,
  maxPixels: 178_956_970,
}

const step = (n: number): StepEvent => ({
  type: 'step',
  epoch: Math.floor((n - 1) / 20) + 1,
  step: n,
  stepInEpoch: ((n - 1) % 20) + 1,
  stepsPerEpoch: 20,
  totalSteps: 80,
  loss: 2 - n / 100,
  meanLoss: 2 - n / 200,
  top1: n,
  lr: 1e-3,
  imagesPerS: 1234.5,
  dataWait: 0.034,
  stepMs: 25,
  waitMs: 1,
  elapsedMs: 26 * n,
})

const epoch = (n: number, top1: number, best: boolean): TrainerEvent => ({
  type: 'epoch',
  epoch: n + 1,
  step: 20 * (n + 1),
  metrics: { 'train/loss': 1.5, 'train/top1': 40, 'val/loss': 1.25, 'val/top1': top1, 'val/top5': 99, lr: 5e-4 },
  best,
  elapsedMs: 700,
})

const events: TrainerEvent[] = [
  { type: 'start', options, stepsPerEpoch: 20, totalSteps: 80, trainImages: 640, valImages: 400, classes: ['a', 'b'] },
  ...Array.from({ length: 20 }, (_, i) => step(i + 1)),
  { type: 'validation-step', epoch: 1, done: 32, total: 400 },
  epoch(0, 80.5, true),
  { type: 'checkpoint', path: '/runs/x/checkpoints/last', kinds: ['last', 'best'], epoch: 1, step: 20, bytes: 5e7, ms: 80 },
  { type: 'warning', code: 'EFF_DATA_DECODE', message: 'a.jpg: cut', hint: 'mend it' },
  { type: 'warning', code: 'EFF_DATA_DECODE', message: 'b.jpg: cut' },
  ...Array.from({ length: 20 }, (_, i) => step(i + 21)),
  epoch(1, 79, false),
]

function play(settings: { tty?: boolean; columns?: number; json?: boolean; verbosity?: number }) {
  const stdout = new StringSink(settings.tty, settings.columns)
  const stderr = new StringSink(settings.tty, settings.columns)
  const ui = new Ui(
    { stdout, stderr, env: {} },
    { json: settings.json ?? false, quiet: false, verbosity: settings.verbosity ?? 0 },
  )
  const console = new TrainUi(ui)
  for (const event of events) console.on(event)
  ui.warningsLeft()
  return { stdout: stdout.text, stderr: stderr.text }
}

describe('the console of a run', () => {
  it('in a file: plan, a line every logEvery steps, a row an epoch, the best marked, no escape codes', () => {
    const { stdout, stderr } = play({})
    const lines = stdout.trimEnd().split('\n')
    expect(lines[0]).toBe(
      'plan   4 epochs × 20 steps · batch 32 · adamw lr 0.001 cosine, 1 warm-up · weight decay 0.01 · label smoothing 0.1 · ' +
        'EMA off · crop 0.35-1 bicubic + flip · drop 0/0 · seed 7',
    )
    expect(lines.filter((l) => /\d img\/s/.test(l))).toHaveLength(4)
    expect(lines.find((l) => l.includes('10/20'))).toMatch(
      /^ 1\/4 {2}10\/20 {2}loss 1\.950 {2}top1 10\.0 {2}lr 0\.001 {2}1 235 img\/s {2}wait 3\.4 %/,
    )
    const rows = lines.filter((l) => /\d\/4 .*(80\.5|79\.0)/.test(l))
    expect(rows).toHaveLength(2)
    expect(rows[0]).toMatch(/1\.500 +40\.0 +1\.250 +80\.5\* +99\.0/)
    expect(rows[1]).not.toContain('*')
    expect(lines.filter((l) => l.includes('wait%'))).toHaveLength(1)
    expect(rows[0]!.length).toBeLessThan(90)
    expect(stdout).not.toContain('\u001b')
    expect(stderr).toBe('warning  EFF_DATA_DECODE  a.jpg: cut\n  Mend: mend it\nwarning  EFF_DATA_DECODE: and 1 more\n')
  })

  it('on a terminal: whole lines never mix with the live one, and it is never wider than the terminal', () => {
    const { stdout } = play({ tty: true, columns: 60 })
    expect(stdout).toContain('\r\u001b[2K')
    const drawn = stdout.split('\r\u001b[2K').filter((p) => p.includes('loss ') && !p.includes('\n'))
    for (const line of drawn) expect(line.length).toBeLessThan(60)
  })

  it('with --json: events on stdout, text on stderr', () => {
    const { stdout, stderr } = play({ json: true })
    const objects = stdout
      .trimEnd()
      .split('\n')
      .map((l) => JSON.parse(l) as Record<string, unknown>)
    const kinds = objects.map((o) => o['event'])
    expect(kinds).toEqual(['start', 'step', 'step', 'epoch', 'checkpoint', 'warning', 'warning', 'step', 'step', 'epoch'])
    expect(objects[1]).toMatchObject({ step: 10, loss: 1.9, lr: 0.001 })
    expect(stderr).toContain('plan   4 epochs')
  })

  it('says that kernels are measured, and what it took', () => {
    const stdout = new StringSink()
    const stderr = new StringSink()
    const ui = new Ui({ stdout, stderr, env: {} }, { json: true, quiet: false, verbosity: 0 })
    const measuring = { plan: 'efficientnet_b0 train 32x224', ops: 41 }
    new TrainUi(ui).on({ type: 'kernels', ...measuring })
    new TrainUi(ui).on({ type: 'kernels', ...measuring, seconds: 3.21 })
    expect(
      stdout.text
        .trimEnd()
        .split('\n')
        .map((line) => JSON.parse(line) as object),
    ).toEqual([
      { event: 'kernels', ...measuring },
      { event: 'kernels', ...measuring, seconds: 3.21 },
    ])
    expect(stderr.text).toBe(
      'kernels  measuring those of 41 ops (efficientnet_b0 train 32x224)\nkernels  41 ops (efficientnet_b0 train 32x224) · measured in 3.2 s\n',
    )
  })

  it('says where checkpoints went with -v only', () => {
    expect(play({}).stdout).not.toContain('saved')
    expect(play({ verbosity: 1 }).stdout).toMatch(
      /^saved {2}\/runs\/x\/checkpoints\/last \(last, best\) · step 20 · 48 MiB in 80 ms$/m,
    )
  })
})

describe('the end', () => {
  const result: FitResult = {
    status: 'finished',
    reason: 'epochs',
    epoch: 4,
    step: 80,
    metrics: { 'val/top1': 90.25, 'val/top5': 99, 'val/loss': 0.4567 },
    best: { metric: 'val/top1', value: 91.5, epoch: 3, step: 60 },
    imagesPerS: 1234,
    dataWait: 0.01,
    elapsedMs: 65_000,
    checkpoint: '/runs/my run/checkpoints/last',
    bestCheckpoint: '/runs/my run/checkpoints/best',
    outDir: '/runs/my run',
    report: '/runs/my run/report.html',
    badFiles: [],
  }
  const show = (r: FitResult, program = 'effnet'): string => {
    const stdout = new StringSink()
    const ui = new Ui({ stdout, stderr: new StringSink(), env: {} }, { json: false, quiet: false, verbosity: 0 })
    const resume = ['train', '--resume', 'x']
    endBlock(ui, r, { data: 'photos', val: 'photos/val', model: 'efficientnet_b0', resume, program })
    return stdout.text
  }

  it('names metrics, best, files and three commands that can be pasted', () => {
    const text = show(result)
    expect(text).toMatch(/^done {3}val\/top1 90\.25 % · val\/loss 0\.4567 · 1:05 · 1 234 img\/s · wait 1\.0 % · peak \d/m)
    expect(text).toMatch(/^best {3}val\/top1 91\.5 in epoch 3 · \/runs\/my run\/checkpoints\/best$/m)
    expect(text).toContain('/runs/my run/report.html')
    expect(text).toContain("next   effnet predict --checkpoint '/runs/my run/checkpoints/best' photos/val\n")
    expect(text).toContain("       effnet eval --data photos --checkpoint '/runs/my run/checkpoints/best'\n")
    expect(text.match(/effnet /g)).toHaveLength(3)
  })

  it('counts the files that could not be read', () => {
    const bad = { path: '/photos/a.jpg', code: 'EFF_DATA_DECODE' as const, message: '/photos/a.jpg: no JPEG' }
    expect(show({ ...result, badFiles: [bad] })).toMatch(/^bad {4}1 file could not be read: \/runs\/my run\/bad_files\.csv$/m)
    const { outDir: _, ...kept } = result
    expect(show({ ...kept, badFiles: [bad, bad] })).toMatch(/^bad {4}2 files could not be read$/m)
  })

  it('after an interruption says how to go on', () => {
    const text = show({ ...result, status: 'interrupted', reason: 'SIGINT' })
    expect(text).toMatch(/^stopped {3}SIGINT · val/m)
    expect(text).toMatch(/^next {3}effnet train --resume x$/m)
  })

  it('names the program as it was called', () => {
    expect(show(result, 'npx effnet').match(/npx effnet /g)).toHaveLength(3)
  })
})
