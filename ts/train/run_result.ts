/** What a run leaves behind, as plain data. */
import { EffnetError } from '../errors.js'
import { numbers } from './progress.js'
import type { ResumePoint } from './resume.js'
import type { RunFolder } from './run_folder.js'
import type { EvaluateDetails, FitResult, ResolvedOptions, TrainerOptions } from './types.js'

export const runPaths = (folder: RunFolder, best: boolean) => ({
  outDir: folder.dir,
  checkpoint: folder.last,
  ...(best ? { bestCheckpoint: folder.best } : {}),
  report: folder.file('report.html'),
})

/** The stored result, unless more epochs or steps are asked for than the run had. */
export function finishedResult({ state }: ResumePoint, options: ResolvedOptions): FitResult | undefined {
  const { result, options: then } = state
  if (result === null || result.status !== 'finished') return undefined
  if (result.reason === 'epochs' && options.maxEpochs > state.epoch) return undefined
  const steps = options.maxSteps ?? Number.POSITIVE_INFINITY
  if (result.reason === 'steps' && steps > state.step && (then.maxSteps ?? 0) < steps) return undefined
  return { ...result, metrics: numbers(result.metrics) }
}

/** What the user gave, without objects that are not data. */
export function plainOptions(given: TrainerOptions): Record<string, unknown> {
  const { model, callbacks, signal, config, command, ...plain } = given
  return { model: model.name, ...plain }
}

/** results.json keeps a confusion matrix as rows, as long as a person could read it. */
export function storedDetails(details: EvaluateDetails | undefined): unknown {
  if (!details) return null
  const k = details.classes.length
  const { confusion, ...rest } = details
  const rows = confusion && k <= 200 ? Array.from({ length: k }, (_, i) => [...confusion.subarray(i * k, (i + 1) * k)]) : null
  return { ...rest, confusion: rows }
}

/** What makes a finished run go on. */
export const trainsOn = ({ reason, epoch, step }: FitResult): string =>
  reason === 'epochs'
    ? `maxEpochs: ${epoch + 1} or more trains on`
    : reason === 'steps'
      ? `maxSteps: ${step + 1} or more trains on`
      : 'a new run in another folder, with the weights of this one'

/** A folder that stays empty is not what was asked for. */
export const nothingLeft = ({ dir }: ResumePoint, done: FitResult, folder: RunFolder): EffnetError =>
  new EffnetError(
    'EFF_CONFIG_VALUE',
    `${dir}: this run is finished (epoch ${done.epoch}, step ${done.step}): nothing is left to train in ${folder.dir}`,
    { hint: trainsOn(done), details: { path: dir, reason: done.reason } },
  )
