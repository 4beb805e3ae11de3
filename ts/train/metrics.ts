/** Counts over batches: loss, top-1, top-5, per class, confusion, worst errors. Nothing here allocates per sample. */
import type { EvaluateDetails, WorstError } from './types.js'

/** Above this many classes a confusion matrix is neither readable nor cheap. */
const MAX_CONFUSION_CLASSES = 1000
const WORST = 24
const TOP5 = 5

/** Running loss and accuracy of an epoch. */
export class RunningMetrics {
  private lossSum = 0
  private samples = 0
  private hits1 = 0
  private hits5 = 0

  /** `loss` is the mean over the samples with rank >= 0. */
  add(loss: number, ranks: Int32Array): void {
    let n = 0
    for (const rank of ranks) {
      if (rank < 0) continue
      n++
      if (rank === 0) this.hits1++
      if (rank < TOP5) this.hits5++
    }
    this.samples += n
    this.lossSum += loss * n
  }

  get count(): number {
    return this.samples
  }

  get loss(): number {
    return this.samples === 0 ? Number.NaN : this.lossSum / this.samples
  }

  /** Percent. */
  get top1(): number {
    return this.samples === 0 ? Number.NaN : (100 * this.hits1) / this.samples
  }

  get top5(): number {
    return this.samples === 0 ? Number.NaN : (100 * this.hits5) / this.samples
  }

  /** For checkpoints within an epoch. */
  state(): number[] {
    return [this.lossSum, this.samples, this.hits1, this.hits5]
  }

  load([lossSum = 0, samples = 0, hits1 = 0, hits5 = 0]: readonly number[]): void {
    this.lossSum = lossSum
    this.samples = samples
    this.hits1 = hits1
    this.hits5 = hits5
  }
}

/** Index of the largest of `count` values; the smaller index wins a tie, as in the ranks of the loss op. */
export function argmax(values: Float32Array, start: number, count: number): number {
  let best = 0
  for (let k = 1; k < count; k++) if (values[start + k]! > values[start + best]!) best = k
  return best
}

/** log(sum(exp(x))) without overflow. */
export function logSumExp(values: Float32Array, start: number, count: number): number {
  let max = Number.NEGATIVE_INFINITY
  for (let k = 0; k < count; k++) max = Math.max(max, values[start + k]!)
  let sum = 0
  for (let k = 0; k < count; k++) sum += Math.exp(values[start + k]! - max)
  return max + Math.log(sum)
}

/** Per-class counts and the errors with the highest loss. */
export class DetailedMetrics {
  private readonly confusion: Uint32Array | undefined
  private readonly perClass: { count: number; top1: number; top5: number; predicted: number }[]
  private worst: WorstError[] = []

  constructor(private readonly classes: readonly string[]) {
    const k = classes.length
    this.confusion = k <= MAX_CONFUSION_CLASSES ? new Uint32Array(k * k) : undefined
    this.perClass = classes.map(() => ({ count: 0, top1: 0, top5: 0, predicted: 0 }))
  }

  /** One batch: `count` real samples of `logits` [N, K]. */
  add(logits: Float32Array, ranks: Int32Array, labels: Int32Array, count: number, path: (i: number) => string): void {
    const k = this.classes.length
    for (let i = 0; i < count; i++) {
      const label = labels[i]!
      const rank = ranks[i]!
      if (rank < 0) continue
      const own = this.perClass[label]!
      own.count++
      if (rank < TOP5) own.top5++
      const predicted = rank === 0 ? label : argmax(logits, i * k, k)
      this.perClass[predicted]!.predicted++
      if (this.confusion) this.confusion[label * k + predicted]!++
      if (rank === 0) own.top1++
      else this.noteError(logits, i, label, predicted, path)
    }
  }

  result(): EvaluateDetails {
    const worst = [...this.worst].sort((a, b) => b.loss - a.loss)
    return {
      classes: this.classes,
      perClass: this.perClass.map((c) => ({ ...c })),
      worst,
      ...(this.confusion ? { confusion: this.confusion.slice() } : {}),
    }
  }

  private noteError(logits: Float32Array, i: number, label: number, predicted: number, path: (i: number) => string): void {
    const k = this.classes.length
    const norm = logSumExp(logits, i * k, k)
    const loss = norm - logits[i * k + label]!
    const least = this.worst[this.worst.length - 1]
    if (this.worst.length >= WORST && least !== undefined && loss <= least.loss) return
    this.worst.push({ path: path(i), label, predicted, score: Math.exp(logits[i * k + predicted]! - norm), loss })
    this.worst.sort((a, b) => b.loss - a.loss)
    if (this.worst.length > WORST) this.worst.pop()
  }
}
