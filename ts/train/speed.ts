import type { Progress } from './progress.js'

/** Throughput of the epoch in work, and of the run. */
export class Speed {
  private images = 0
  private ms = 0
  private waitMs = 0
  private firstStepDone = false

  constructor(private readonly progress: Progress) {}

  startEpoch(): void {
    this.images = 0
    this.ms = 0
    this.waitMs = 0
  }

  /** Start-up (kernels' first touch of memory, an empty pipeline) is left out of the run's throughput. */
  count(images: number, stepMs: number, waitMs: number): void {
    this.images += images
    this.ms += stepMs + waitMs
    this.waitMs += waitMs
    if (!this.firstStepDone) {
      this.firstStepDone = true
      return
    }
    this.progress.trainedImages += images
    this.progress.trainedMs += stepMs + waitMs
    this.progress.waitMs += waitMs
  }

  /** Images per second since the start of the epoch. */
  get imagesPerS(): number {
    return this.ms > 0 ? (1000 * this.images) / this.ms : 0
  }

  /** Share of the time since the start of the epoch, 0..1. */
  get dataWait(): number {
    return this.ms > 0 ? this.waitMs / this.ms : 0
  }
}
