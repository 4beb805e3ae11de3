/** Events of a run for any number of readers. A reader that falls behind loses step events, never the others. */
import type { TrainerEvent } from './types.js'

/** Step events kept for a slow reader. */
const MAX_WAITING_STEPS = 1000

class Subscription implements AsyncIterableIterator<TrainerEvent> {
  private queue: TrainerEvent[] = []
  private waiting: ((result: IteratorResult<TrainerEvent>) => void)[] = []
  private steps = 0
  private ended = false

  constructor(private readonly leave: (s: Subscription) => void) {}

  push(event: TrainerEvent): void {
    if (this.ended) return
    const taker = this.waiting.shift()
    if (taker) {
      taker({ value: event, done: false })
      return
    }
    if (event.type === 'step' || event.type === 'validation-step') {
      if (this.steps >= MAX_WAITING_STEPS) {
        const oldest = this.queue.findIndex((e) => e.type === 'step' || e.type === 'validation-step')
        this.queue.splice(oldest, 1)
        this.steps--
      }
      this.steps++
    }
    this.queue.push(event)
  }

  end(): void {
    this.ended = true
    for (const taker of this.waiting.splice(0)) taker({ value: undefined, done: true })
  }

  async next(): Promise<IteratorResult<TrainerEvent>> {
    const event = this.queue.shift()
    if (event) {
      if (event.type === 'step' || event.type === 'validation-step') this.steps--
      return { value: event, done: false }
    }
    if (this.ended) return { value: undefined, done: true }
    return new Promise((resolve) => this.waiting.push(resolve))
  }

  async return(): Promise<IteratorResult<TrainerEvent>> {
    this.queue = []
    this.end()
    this.leave(this)
    return { value: undefined, done: true }
  }

  [Symbol.asyncIterator](): this {
    return this
  }
}

export class EventHub {
  private readonly readers = new Set<Subscription>()

  /** Events from now on, until the run ends. */
  subscribe(): AsyncIterableIterator<TrainerEvent> {
    const reader = new Subscription((s) => this.readers.delete(s))
    this.readers.add(reader)
    return reader
  }

  emit(event: TrainerEvent): void {
    for (const reader of this.readers) reader.push(event)
    if (event.type === 'end') this.close()
  }

  close(): void {
    for (const reader of this.readers) reader.end()
    this.readers.clear()
  }
}
