/** The verbs on real files, end to end: a tiny training, its evaluation, predictions, resume, signals, bench. */
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, renameSync } from 'node:fs'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Captured, effnet } from './helpers/capture.js'
import { photo, type Workplace, workplace } from './helpers/folders.js'
import { spawnEffnet } from './helpers/spawn.js'

let w: Workplace
const SMALL =
  '--model efficientnet_b0 --image-size 32 --batch-size 4 --optimizer adamw --lr 1e-3 --warmup-epochs 0 --seed 3'.split(' ')
const train = (...words: string[]) => ['train', '--data', w.at('data'), ...SMALL, '--json', ...words]
const sha = (file: string): string => createHash('sha256').update(readFileSync(file)).digest('hex')
const weightsOf = (run: string): string => sha(path.join(run, 'checkpoints/last/model.safetensors'))

interface Result {
  status: string
  epoch: number
  step: number
  metrics: Record<string, number>
  images_per_s: number
  checkpoint: string
}
const resultOf = (c: Pick<Captured, 'stdout'>): Result =>
  (JSON.parse(c.stdout.trimEnd().split('\n').at(-1)!) as { result: Result }).result

let first: Captured

beforeAll(async () => {
  w = workplace()
  w.dataset('data')
  first = await effnet(train('--epochs', '2', '--out', w.at('first')))
})
afterAll(() => w.remove())

describe('train', () => {
  it('ends with a result, of JSON lines only', () => {
    expect(first.stderr).toMatch(/plan .*2 epochs × 2 steps/)
    expect(first.code).toBe(0)
    const events = first.json().map((l) => l['event'] ?? Object.keys(l)[0])
    expect(events.filter((e) => e === 'epoch')).toHaveLength(2)
    expect(events.at(-1)).toBe('result')
    const result = resultOf(first)
    expect(result).toMatchObject({ status: 'finished', epoch: 2, step: 4 })
    expect(Object.keys(result.metrics)).toEqual(expect.arrayContaining(['val/top1', 'val/top5', 'val/loss']))
    // Of four images.
    expect([0, 25, 50, 75, 100]).toContain(result.metrics['val/top1'])
    expect(result.metrics['val/top5']).toBe(100)
    expect(result.images_per_s).toBeGreaterThan(0)
    expect(existsSync(path.join(result.checkpoint, 'model.safetensors'))).toBe(true)
    expect(path.resolve(result.checkpoint)).toBe(w.at('first/checkpoints/last'))
  })

  it('shows version, data, model, plan, a row an epoch with the best marked, and what to run next', async () => {
    const { code, stdout, stderr } = await effnet([
      ...train('--epochs', '2', '--out', w.at('human')).filter((word) => word !== '--json'),
    ])
    expect(stderr).toBe('')
    expect(code).toBe(0)
    const lines = stdout.split('\n')
    expect(lines[0]).toMatch(/^effnet \d.* · node \d+.* · \w+-\w+ · CPU .* · \d+ threads? · fp32$/)
    expect(lines[1]).toMatch(/^data {3}.*8 images, 2 classes · val 4$/)
    expect(lines[2]).toMatch(/^model {2}efficientnet_b0 @32 · 4\.01 M params · 0\.01 GFLOPs · random weights/)
    expect(lines[3]).toMatch(/^plan {3}2 epochs × 2 steps · batch 4 · adamw lr 0\.001 cosine/)
    expect(stdout).toMatch(/^ *epoch +loss .*img\/s/m)
    expect(lines.filter((l) => /^ +[12]\/2 /.test(l)).length).toBeGreaterThanOrEqual(2)
    expect(lines.filter((l) => /^ +[12]\/2 /.test(l) && l.includes('*')).length).toBeGreaterThanOrEqual(1)
    expect(stdout).toMatch(/^done /m)
    const next = lines.slice(lines.findIndex((l) => l.startsWith('next')))
    expect(next[0]).toContain(`effnet predict --checkpoint ${w.at('human')}`)
    expect(next[1]).toContain(`effnet eval --data ${w.at('data')} --checkpoint ${w.at('human')}`)
  })

  it('will not overwrite a run', async () => {
    const before = weightsOf(w.at('first'))
    expect((await effnet(train('--epochs', '2', '--out', w.at('first')))).code).toBe(73)
    expect(weightsOf(w.at('first'))).toBe(before)
  })

  it('--resume of a finished run prints its result', async () => {
    const again = await effnet(train('--epochs', '2', '--out', w.at('first'), '--resume'))
    expect(again.code).toBe(0)
    const { status, epoch, step, metrics } = resultOf(first)
    expect(resultOf(again)).toMatchObject({ status, epoch, step, metrics })
  })

  it('--resume without a run starts it, with the same weights in the end', async () => {
    const fresh = await effnet(train('--epochs', '2', '--out', w.at('fresh'), '--resume'))
    expect(fresh.code).toBe(0)
    expect(weightsOf(w.at('fresh'))).toBe(weightsOf(w.at('first')))
  })

  it('says that a classifier of another size was replaced', async () => {
    const weights = w.at('first/checkpoints/last/model.safetensors')
    w.classes('three/train', ['a', 'b', 'c'], 2)
    const argv = [
      'train',
      '--data',
      w.at('three'),
      ...SMALL,
      '--weights',
      weights,
      '--max-steps',
      '1',
      '--out',
      w.at('three-run'),
    ]
    const { code, stdout } = await effnet(argv)
    expect(code).toBe(0)
    expect(stdout).toMatch(/classifier replaced: 2 -> 3 classes/)
    expect(stdout).toMatch(/model\.safetensors \(\d+ of \d+ tensors\)/)
  })
})

describe('eval and predict', () => {
  it('eval gives the metrics that the training ended with', async () => {
    const argv = ['eval', '--data', w.at('data'), '--checkpoint', w.at('first/checkpoints/last'), '--json']
    const { code, json } = await effnet(argv)
    expect(code).toBe(0)
    const { result } = json().at(-1) as unknown as { result: Result & { images: number } }
    const { metrics } = resultOf(first)
    expect(result.images).toBe(4)
    expect(result.metrics['val/top1']).toBe(metrics['val/top1'])
    expect(result.metrics['val/loss']).toBeCloseTo(metrics['val/loss']!, 6)
    const classes = await effnet(['eval', '--data', w.at('data/val'), '--checkpoint', w.at('first'), '--json'])
    expect(classes.code).toBe(0)
  })

  it('predict names images in order, with paths as given', async () => {
    const relative = path.relative(process.cwd(), photo('gray.jpg'))
    const words = [photo(), relative, w.at('data/val/cat')]
    const argv = ['predict', '--checkpoint', w.at('first/checkpoints/last'), '--logits', '--top-k', '2', '--json', ...words]
    const { code, json } = await effnet(argv)
    expect(code).toBe(0)
    const lines = json() as { path: string; topk: { index: number; label: string; score: number }[]; logits: number[] }[]
    expect(lines.map((l) => l.path)).toEqual([photo(), relative, w.at('data/val/cat/0.jpg'), w.at('data/val/cat/1.jpg')])
    for (const { topk, logits } of lines) {
      expect(topk.map((t) => t.label).sort()).toEqual(['cat', 'dog'])
      expect(topk[0]!.score + topk[1]!.score).toBeCloseTo(1, 6)
      expect(logits).toHaveLength(2)
      expect(logits[topk[0]!.index]).toBe(Math.max(...logits))
    }
  })

  it('predict gives the same with another batch size and another thread count', async () => {
    const argv = ['predict', '--checkpoint', w.at('first'), '--logits', '--json', w.at('data/val')]
    const logits = async (...words: string[]) => (await effnet([...argv, ...words])).json().map((l) => l['logits'] as number[])
    const [one, four] = [await logits('--batch-size', '1', '--threads', '1'), await logits('--batch-size', '4', '--threads', '2')]
    one.forEach((row, i) => {
      row.forEach((v, k) => {
        expect(v).toBeCloseTo(four[i]![k]!, 4)
      })
    })
  })
})

describe('signals', () => {
  const long = (out: string) => train('--epochs', '60', '--log-every', '1', '--out', out)

  it.each(['SIGTERM', 'SIGUSR1'] as const)('%s: checkpoint at the step, exit 75', async (signal) => {
    const out = w.at(`run-${signal}`)
    const run = spawnEffnet(long(out))
    await run.line(/"event":"step".*"step":3,/)
    run.child.kill(signal)
    const ended = await run.done
    expect(ended).toMatchObject({ code: 75, signal: null })
    const result = resultOf(ended)
    expect(result.status).toBe('interrupted')
    const state = JSON.parse(readFileSync(path.join(out, 'checkpoints/last/state.json'), 'utf8')) as { step: number }
    expect(state.step).toBe(result.step)
    expect(result.step).toBeGreaterThanOrEqual(3)
  })

  it('--exit-143-on-sigterm: the same with the exit code 143, in status.json too; SIGINT stays 75', async () => {
    const out = w.at('run-143')
    const stop = async (words: string[], signal: 'SIGTERM' | 'SIGINT', code: number) => {
      const run = spawnEffnet(words)
      await run.line(/"event":"step"/)
      run.child.kill(signal)
      const ended = await run.done
      expect(ended).toMatchObject({ code, signal: null })
      const { step } = resultOf(ended)
      const status = JSON.parse(readFileSync(path.join(out, 'status.json'), 'utf8'))
      expect(status).toMatchObject({ state: 'interrupted', exitCode: code, step, message: signal })
      const state = JSON.parse(readFileSync(path.join(out, 'checkpoints/last/state.json'), 'utf8')) as { step: number }
      expect(state.step).toBe(step)
    }
    await stop([...long(out), '--exit-143-on-sigterm'], 'SIGTERM', 143)
    // The run that is gone on with keeps the option.
    await stop(['train', '--resume', out, '--json'], 'SIGTERM', 143)
    await stop(['train', '--resume', out, '--json'], 'SIGINT', 75)
  })

  it('SIGHUP begins logs anew that were moved away, and goes on', async () => {
    const out = w.at('hup')
    const run = spawnEffnet(train('--epochs', '40', '--log-every', '1', '--out', out))
    await run.line(/"event":"step".*"step":5,/)
    const log = (name: string) => readFileSync(path.join(out, name), 'utf8').trimEnd().split('\n')
    for (const name of ['metrics.csv', 'steps.jsonl']) renameSync(path.join(out, name), path.join(out, `${name}.1`))
    run.child.kill('SIGHUP')
    const { code, stdout } = await run.done
    expect(code).toBe(0)
    expect(resultOf({ stdout })).toMatchObject({ status: 'finished', step: 80 })
    const [header, ...rows] = log('metrics.csv')
    const [oldHeader, ...oldRows] = log('metrics.csv.1')
    expect(header).toBe(oldHeader)
    expect([...oldRows, ...rows].map((row) => Number(row.split(',')[0]))).toEqual(Array.from({ length: 40 }, (_, i) => i + 1))
    const steps = [...log('steps.jsonl.1'), ...log('steps.jsonl')].map((line) => (JSON.parse(line) as { step: number }).step)
    expect(steps).toEqual(Array.from({ length: 80 }, (_, i) => i + 1))
    expect(rows.length).toBeGreaterThan(0)
  })

  it('an interrupted run that is resumed ends with the weights of one that was not', async () => {
    const out = w.at('interrupted')
    const words = train('--epochs', '5', '--log-every', '1')
    const run = spawnEffnet([...words, '--out', out])
    await run.line(/"event":"step".*"step":5,/)
    run.child.kill('SIGINT')
    expect((await run.done).code).toBe(75)
    const resumed = await effnet(['train', '--resume', out, '--json'])
    expect(resumed.code).toBe(0)
    expect(resultOf(resumed)).toMatchObject({ status: 'finished', epoch: 5, step: 10 })
    expect((await effnet([...words, '--out', w.at('whole')])).code).toBe(0)
    expect(weightsOf(out)).toBe(weightsOf(w.at('whole')))
  })

  it('SIGUSR2 writes a checkpoint and goes on', async () => {
    const run = spawnEffnet(train('--epochs', '6', '--log-every', '1', '--out', w.at('usr2')))
    await run.line(/"event":"step".*"step":3,/)
    run.child.kill('SIGUSR2')
    const { code, stdout } = await run.done
    expect(code).toBe(0)
    const lines = stdout
      .trimEnd()
      .split('\n')
      .map((l) => JSON.parse(l) as { event?: string; step?: number; kinds?: string[] })
    // One an epoch, and the one that was asked for, at whatever step the signal met.
    expect(lines.filter((l) => l.event === 'checkpoint')).toHaveLength(7)
    expect(resultOf({ stdout })).toMatchObject({ status: 'finished', step: 12 })
  })
})

describe('bench', () => {
  it.each(['infer', 'train'])('--mode %s measures steps and kernels', async (mode) => {
    const argv = [
      'bench',
      '--model',
      'efficientnet_b0',
      '--mode',
      mode,
      '--batch-size',
      '2',
      '--image-size',
      '32',
      '--steps',
      '3',
    ]
    const { code, json } = await effnet([...argv, '--json'])
    expect(code).toBe(0)
    const [row] = json() as [Record<string, unknown> & { kernels: Record<string, unknown>[]; latency_ms: Record<string, number> }]
    expect(row!.steps).toBe(3)
    expect(row!['images_per_s']).toBeCloseTo(2000 / row!.latency_ms['mean']!, 6)
    expect(row!['peak_bytes']).toBeGreaterThan(1e6)
    expect(row!.kernels.length).toBeGreaterThan(50)
    for (const kernel of row!.kernels) {
      expect(Object.keys(kernel)).toEqual(['op', 'kernel', 'ms', 'bytes', 'flops'])
      expect(kernel['kernel']).not.toMatch(/^ref/)
    }
    const { p50, p90, p95, p99 } = row!.latency_ms as { p50: number; p90: number; p95: number; p99: number }
    expect([p50, p90, p95, p99]).toEqual([...[p50, p90, p95, p99]].sort((a, b) => a - b))
  })

  it('--mode data measures the input pipeline alone', async () => {
    const argv = ['bench', '--mode', 'data', '--data', w.at('data'), '--batch-size', '4', '--image-size', '32', '--steps', '5']
    const { code, json } = await effnet([...argv, '--json'])
    expect(code).toBe(0)
    expect(json()[0]).toMatchObject({ images_per_s: expect.any(Number), steps: 5, batch_size: 4 })
    expect((await effnet([...argv.slice(0, 4), w.at('data/train'), ...argv.slice(5), '--json'])).code).toBe(0)
  })

  it('shows a table for people', async () => {
    const argv = ['bench', '--model', 'efficientnet_b0', '--batch-size', '1', '--image-size', '32', '--steps', '2']
    const { stdout } = await effnet(argv)
    expect(stdout).toMatch(/^speed {2}[\d.]+ img\/s/m)
    expect(stdout).toMatch(/^op +kernel +n +ms +% +GF\/s +GB\/s$/m)
  })
})

describe('doctor and version', () => {
  it('doctor finds this machine fit', async () => {
    const { code, json } = await effnet(['doctor', '--json'])
    expect(code).toBe(0)
    const [report] = json() as [{ ok: boolean; checks: { name: string; status: string; value: string }[] }]
    expect(report!.ok).toBe(true)
    const names = report!.checks.map((c) => c.name)
    for (const name of ['node', 'node-api', 'addon', 'oneDNN', 'cpu', 'isa', 'cpus', 'memory', 'sharp', 'weights', 'disk space'])
      expect(names).toContain(name)
  })

  it('version tells package, Node, addon and oneDNN', async () => {
    const [versions] = (await effnet(['version', '--json'])).json()
    expect(versions).toMatchObject({ effnet: expect.stringMatching(/^\d+\.\d+\.\d+/), onednn: expect.stringMatching(/^3\.2/) })
    expect((await effnet(['--version'])).stdout).toBe(`${versions!['effnet']}\n`)
  })
})
