/** Evaluation plans of a model by batch and image size, and the order in which they may run. */
import type { NonFinite, StepInput } from '../binding.js'
import { EffnetError } from '../errors.js'
import type { EvalPlan, EvalResult, Session } from '../runtime/session.js'

/** Plans share weights and the activation arena; each keeps its kernels and folded weights. */
const MAX_PLANS = 6

interface Entry {
  batch: number
  size: number
  plan: Promise<EvalPlan>
}

export class PlanCache {
  private readonly entries: Entry[] = []
  private tail: Promise<unknown> = Promise.resolve()
  private closed = false

  constructor(private readonly session: Session) {}

  /** One use of the session's arenas at a time, in the order asked for. */
  exclusive<T>(work: () => Promise<T>): Promise<T> {
    const result = this.tail.then(() => {
      this.open()
      return work()
    })
    this.tail = result.catch(() => undefined)
    return result
  }

  /** Runs one batch of exactly `batch` images (labels -1 where unknown). */
  run(batch: number, size: number, input: StepInput): Promise<EvalResult> {
    return this.exclusive(async () => (await this.entry(batch, size).plan).run(input))
  }

  /** Compiles the plan of such batches, so that the first one can be taken to the device ahead. */
  async prepare(batch: number, size: number): Promise<void> {
    await this.exclusive(() => this.entry(batch, size).plan)
  }

  /** Takes a batch that will be run to the device beside what runs, where its plan is there. */
  async prefetch(batch: number, size: number, input: StepInput): Promise<void> {
    const known = this.entries.find((e) => e.batch === batch && e.size === size)
    await (await known?.plan)?.prefetch(input)
  }

  /** Where a batch first gave NaN or infinity; null where it does not. */
  findNonFinite(batch: number, size: number, input: StepInput): Promise<NonFinite | null> {
    return this.exclusive(async () => (await this.entry(batch, size).plan).findNonFinite(input))
  }

  /** The smallest bound plan that n images fill at least a quarter of, else the next power of two; at most `limit`. */
  batchFor(n: number, size: number, limit: number): number {
    if (n >= limit) return limit
    const bound = this.entries.filter((e) => e.size === size && e.batch >= n && e.batch <= 4 * n).map((e) => e.batch)
    if (bound.length > 0) return Math.min(...bound)
    return Math.min(limit, 2 ** Math.ceil(Math.log2(n)))
  }

  async close(): Promise<void> {
    if (this.closed) return
    this.closed = true
    await this.tail
    for (const { plan } of this.entries.splice(0)) await plan.then((p) => p.close()).catch(() => undefined)
  }

  private entry(batch: number, size: number): Entry {
    const index = this.entries.findIndex((e) => e.batch === batch && e.size === size)
    if (index >= 0) {
      const [entry] = this.entries.splice(index, 1)
      this.entries.push(entry!)
      return entry!
    }
    const entry: Entry = {
      batch,
      size,
      plan: this.session.evalPlan({ batchSize: batch, imageSize: size }),
    }
    entry.plan.catch(() => {
      const at = this.entries.indexOf(entry)
      if (at >= 0) this.entries.splice(at, 1)
    })
    this.entries.push(entry)
    if (this.entries.length > MAX_PLANS) {
      const old = this.entries.shift()!
      void old.plan.then((p) => p.close()).catch(() => undefined)
    }
    return entry
  }

  private open(): void {
    if (this.closed) throw new EffnetError('EFF_CLOSED', 'the model was closed')
  }
}
