/** Writes `last` and `best` of a run, one save at a time, behind the training steps. */
import { binding } from '../binding.js'
import type { Model } from '../model.js'
import { modelJson, startCheckpoint, type TrainState } from './checkpoint.js'
import { duplicateFolder } from './checkpoint_folder.js'
import type { RunFolder } from './run_folder.js'
import type { CheckpointEvent, OptimizerName } from './types.js'

export class CheckpointKeeper {
  private pending: Promise<void> | undefined
  private savedAt = performance.now()
  /** Step of the newest complete save of this process. */
  savedStep = -1

  constructor(
    private readonly folder: RunFolder,
    private readonly model: Model,
    private readonly content: { optimizer: OptimizerName; ema: boolean },
    private readonly onSaved: (event: CheckpointEvent) => void | Promise<void>,
  ) {}

  get minutesSinceSave(): number {
    return (performance.now() - this.savedAt) / 60_000
  }

  /** Copies the weights before it resolves; the writing goes on. An error of the save before this one is thrown here. */
  async save(state: TrainState, best: boolean): Promise<void> {
    await this.settle()
    const { folder, model } = this
    this.savedAt = performance.now()
    const started = performance.now()
    const json = modelJson(model.config, model.classes)
    // A prediction that the program makes meanwhile must not run while the weights are copied.
    const { done } = await model.plans.exclusive(() =>
      startCheckpoint(model.session, folder.last, json, this.content, state, { keepPrevious: true }),
    )
    this.pending = (async () => {
      const bytes = await done
      if (best) await duplicateFolder(binding(), folder.last, folder.best)
      this.savedStep = state.step
      await this.onSaved({
        type: 'checkpoint',
        path: folder.last,
        kinds: best ? ['last', 'best'] : ['last'],
        epoch: state.epoch,
        step: state.step,
        bytes,
        ms: performance.now() - started,
      })
    })()
    // Whoever settles sees it; meanwhile it is not unhandled.
    this.pending.catch(() => undefined)
  }

  /** Waits for the save in work. */
  async settle(): Promise<void> {
    const { pending } = this
    this.pending = undefined
    await pending
  }
}
