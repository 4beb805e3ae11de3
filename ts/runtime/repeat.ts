import type { StepInput } from '../binding.js'

/**
 * A function that makes `step` on `input` once more, and meanwhile has that taken to the device for the next time, as a loader's batches
 * are. For measuring how many images a second a device does, not how long one of them takes.
 */
export function repeated<T>(
  plan: { prefetch(input: StepInput): Promise<void> },
  input: StepInput,
  step: () => Promise<T>,
): () => Promise<T> {
  return async () => {
    const [result] = await Promise.all([step(), plan.prefetch(input)])
    return result
  }
}
