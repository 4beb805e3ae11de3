/** Time left: the mean of the last steps, plus what validations and checkpoints cost at the end of an epoch. */
const WINDOW = 200
/** The first steps bind kernels and fill caches. */
const WARM_UP = 2

export class Eta {
  readonly #steps: number[] = []
  #seen = 0
  #last: number | undefined
  #epochEnds = 0
  #epochEndMs = 0
  #pausedAt: number | undefined

  /** A training step ended at `now` (ms). */
  step(now: number): void {
    if (this.#pausedAt !== undefined) {
      this.#epochEnds++
      this.#epochEndMs += now - this.#pausedAt
      this.#pausedAt = undefined
      this.#last = now
      return
    }
    const last = this.#last
    this.#last = now
    if (last === undefined || ++this.#seen <= WARM_UP) return
    this.#steps.push(now - last)
    if (this.#steps.length > WINDOW) this.#steps.shift()
  }

  /** The last step of an epoch ended at `now`; what follows until the next step is validation and saving. */
  epochEnd(now: number): void {
    this.#pausedAt = now
  }

  get measured(): number {
    return this.#steps.length
  }

  get stepMs(): number | undefined {
    if (this.#steps.length === 0) return undefined
    return this.#steps.reduce((sum, ms) => sum + ms, 0) / this.#steps.length
  }

  /** Seconds for so many steps, with `ends` ends of epochs among them; undefined before anything is measured. */
  seconds(steps: number, ends: number): number | undefined {
    const { stepMs } = this
    if (stepMs === undefined) return undefined
    const endMs = this.#epochEnds > 0 ? this.#epochEndMs / this.#epochEnds : 0
    return (steps * stepMs + ends * endMs) / 1e3
  }
}
