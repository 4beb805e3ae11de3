import { describe, expect, it } from 'vitest'
import { topClasses } from '../../ts/infer/predict.js'
import { DetailedMetrics, logSumExp, RunningMetrics } from '../../ts/train/metrics.js'

describe('running metrics', () => {
  it('weights each batch by its labelled images and ignores tail padding', () => {
    const m = new RunningMetrics()
    m.add(2, Int32Array.of(0, 3, 7, 0))
    m.add(1, Int32Array.of(5, -1, -1, -1))
    expect(m.count).toBe(5)
    expect(m.loss).toBeCloseTo((2 * 4 + 1) / 5, 12)
    expect(m.top1).toBe(40)
    expect(m.top5).toBe(60)
  })

  it('continues from its state', () => {
    const a = new RunningMetrics()
    a.add(0.5, Int32Array.of(0, 1))
    const b = new RunningMetrics()
    b.load(a.state())
    a.add(1.5, Int32Array.of(9))
    b.add(1.5, Int32Array.of(9))
    expect(b.state()).toEqual(a.state())
  })

  it('has no figures without images', () => {
    expect(new RunningMetrics().top1).toBeNaN()
  })
})

describe('detailed metrics', () => {
  const logits = Float32Array.of(2, 1, 0, /**/ 0, 1, 3, /**/ 1, 1, 0, /**/ 9, 9, 9)
  const labels = Int32Array.of(0, 1, 1, 0)
  const ranks = Int32Array.of(0, 1, 1, -1)

  it('counts classes, confusions and the worst errors', () => {
    const d = new DetailedMetrics(['a', 'b', 'c'])
    d.add(logits, ranks, labels, 4, (i) => `${i}.jpg`)
    const r = d.result()
    expect([...r.confusion!]).toEqual([1, 0, 0, 1, 0, 1, 0, 0, 0])
    expect(r.perClass).toEqual([
      { count: 1, top1: 1, top5: 1, predicted: 2 },
      { count: 2, top1: 0, top5: 2, predicted: 0 },
      { count: 0, top1: 0, top5: 0, predicted: 1 },
    ])
    expect(r.worst.map((w) => w.path)).toEqual(['1.jpg', '2.jpg'])
    const p = Math.exp(1) / (1 + Math.exp(1) + Math.exp(3))
    expect(r.worst[0]!.loss).toBeCloseTo(-Math.log(p), 5)
    expect(r.worst[0]).toMatchObject({ label: 1, predicted: 2 })
  })

  it('keeps the errors with the highest loss only', () => {
    const d = new DetailedMetrics(['a', 'b'])
    for (let i = 0; i < 100; i++) d.add(Float32Array.of(0, i / 10), Int32Array.of(1), Int32Array.of(0), 1, () => `${i}`)
    const { worst } = d.result()
    expect(worst[0]!.path).toBe('99')
    expect(worst.at(-1)!.path).toBe(String(100 - worst.length))
  })
})

describe('top classes', () => {
  const logits = Float32Array.of(100, 0, 3, 3, 1, 2)

  it('are sorted, with softmax scores over all classes; the smaller index wins a tie', () => {
    const top = topClasses(logits, 1, 5, 3)
    expect(top.map((t) => t.index)).toEqual([1, 2, 4])
    const sum = Math.exp(0) + 2 * Math.exp(3) + Math.exp(1) + Math.exp(2)
    expect(top[0]!.score).toBeCloseTo(Math.exp(3) / sum, 6)
    expect(topClasses(logits, 1, 5, 1)[0]!.index).toBe(1)
  })

  it('give every class when asked', () => {
    const many = Float32Array.from({ length: 100 }, (_, i) => (i * 37) % 100)
    const all = topClasses(
      many,
      0,
      100,
      100,
      Array.from({ length: 100 }, (_, i) => `c${i}`),
    )
    expect(all.map((t) => many[t.index])).toEqual(Array.from({ length: 100 }, (_, i) => 99 - i))
    expect(all.reduce((s, t) => s + t.score, 0)).toBeCloseTo(1, 6)
    expect(all[0]!.label).toBe(`c${all[0]!.index}`)
  })

  it('survive large logits', () => {
    expect(logSumExp(Float32Array.of(1e4, 1e4), 0, 2)).toBeCloseTo(1e4 + Math.log(2), 6)
  })
})
