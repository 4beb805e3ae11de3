/**
 * One run of training: data, plan and folder set up, then epoch after epoch. What a checkpoint holds lives in `progress`;
 * everything else can be made again from options and data.
 */
import path from 'node:path'
import type { LossScale, NonFinite, StepInput } from '../binding.js'
import type { NativeBatch } from '../data/loader.js'
import type { ImageDataset } from '../data/types.js'
import { EffnetError } from '../errors.js'
import type { Model } from '../model.js'
import { checkImageDecoder } from '../runtime/device.js'
import type { StepScalars } from '../runtime/scalars.js'
import type { StepResult, TrainPlan } from '../runtime/session.js'
import { CallbackList, CsvLogger, JsonlLogger } from './callbacks.js'
import { hasAverage, machineState, type TrainState } from './checkpoint.js'
import { CHECKPOINT_VERSION } from './checkpoint_folder.js'
import { CheckpointKeeper } from './checkpoint_keeper.js'
import { checkClasses } from './evaluate.js'
import type { EventHub } from './events.js'
import { faultPoint } from './fault.js'
import { Readers } from './loaders.js'
import { metricNames, noSuchMetric } from './metric_names.js'
import { allSkipped, notFinite } from './not_finite.js'
import { fittedBatch, logInterval } from './options.js'
import { Progress } from './progress.js'
import { changedOptions, dataFingerprint, findResume, type ResumePoint, resumeWarnings } from './resume.js'
import { RunFolder, type RunState } from './run_folder.js'
import { lockFolder, RunLock } from './run_lock.js'
import { finishedResult, nothingLeft, plainOptions, runPaths, storedDetails, trainsOn } from './run_result.js'
import { learningRate, type ScheduleSpec } from './schedule.js'
import { Speed } from './speed.js'
import { stepScalars } from './step_scalars.js'
import { readTrainingState } from './tensor_files.js'
import type {
  Callback,
  EpochEvent,
  FitOptions,
  FitResult,
  Metrics,
  ResolvedOptions,
  StartEvent,
  StepEvent,
  TrainerContext,
  TrainerOptions,
  ValidationEvent,
  ValidationStepEvent,
} from './types.js'
import { mean, type UpdatePart } from './update_parts.js'
import { Validation, type ValidationHost } from './validation.js'

/** status.json is refreshed this often within an epoch. */
const STATUS_EVERY_MS = 10_000

type StopStatus = 'finished' | 'interrupted' | 'aborted'

export class FitRun implements TrainerContext, ValidationHost {
  options: ResolvedOptions
  stepsPerEpoch = 0
  totalSteps = 0
  /** Resolves when `fit` has settled, whatever came of it. */
  readonly settled: Promise<void>
  private settle: () => void = () => undefined
  readonly progress = new Progress()
  private readonly speed = new Speed(this.progress)
  private readonly folder: RunFolder | undefined
  private callbacks: CallbackList
  private plan: TrainPlan | undefined
  private readers: Readers | undefined
  private validation: Validation | undefined
  private keeper: CheckpointKeeper | undefined
  private schedule: ScheduleSpec | undefined
  private data: TrainState['data'] | undefined
  private checkpointWanted = false
  private reopenWanted = false
  private logs: readonly (CsvLogger | JsonlLogger)[] = []
  private readonly halt = new AbortController()
  private stopping: { reason: string; status: StopStatus } | undefined
  /** False from the start of a step until its loss is known to be finite: such weights are not saved. */
  private weightsSound = false
  /** The last epoch was the best so far; its save is the one at the end of the run. */
  private bestAtEnd = false
  /** The outcome has been written; an abort is thrown after that. */
  private concluded = false
  /** Calls of `onWarning`, in order. */
  private warnings: Promise<void> = Promise.resolve()
  /** Batches of the step in work that are done. */
  private readonly parts: UpdatePart[] = []
  /** Between the first batch of an update and its end, where it takes several. */
  private updating = false
  /** Where the precision needs one: as the last step left it. */
  private lossScale: LossScale | null = null
  private resumedFrom: { path: string; step: number } | undefined
  private lock: RunLock | undefined
  /** This run writes to the folder: before it, nothing there is touched. */
  private owned = false
  /** Of what the model's session did before this run. */
  private unlockedBefore = 0
  /** The folder holds logs of an earlier process. */
  private continued = false

  constructor(
    private readonly given: TrainerOptions,
    options: ResolvedOptions,
    private readonly hub: EventHub,
  ) {
    this.options = options
    this.callbacks = new CallbackList(given.callbacks ?? [])
    const { outDir } = given
    this.folder = outDir === undefined ? undefined : new RunFolder(path.resolve(outDir), (...w) => this.warn(...w))
    this.settled = new Promise((resolve) => {
      this.settle = resolve
    })
  }

  // ---- TrainerContext

  get model(): Model {
    return this.given.model
  }

  get outDir(): string | undefined {
    return this.folder?.dir
  }

  get epoch(): number {
    return this.progress.epoch
  }

  get step(): number {
    return this.progress.step
  }

  get metrics(): Readonly<Metrics> {
    return this.progress.metrics
  }

  /** The first reason counts; a callback's ends the run as finished, and gives way to one that cuts it off. */
  stop(reason: string, status: StopStatus = 'finished'): void {
    if (!this.stopping || (!this.halted && status !== 'finished')) this.stopping = { reason, status }
    // An update that has begun ends: its batches have moved the running statistics.
    if (this.halted && !this.updating) this.halt.abort()
  }

  /** See `Trainer.conclude`. */
  async conclude(exitCode: number, message?: string): Promise<void> {
    if (this.owned) await this.folder?.conclude(exitCode, message)
    await this.lock?.release()
  }

  /** A checkpoint after the step in work. */
  requestCheckpoint(): void {
    this.checkpointWanted = true
  }

  /** See `Trainer.reopenLogs`. */
  reopenLogs(): void {
    this.reopenWanted = true
  }

  warn(code: string, message: string, hint?: string): void {
    const event = { type: 'warning', code, message, ...(hint === undefined ? {} : { hint }) } as const
    this.hub.emit(event)
    this.warnings = this.warnings.then(() => this.callbacks.call('onWarning', this, event))
    // Thrown at the next step boundary; meanwhile it is not unhandled.
    this.warnings.catch(() => undefined)
  }

  // ---- ValidationHost

  get signal(): AbortSignal {
    return this.halt.signal
  }

  /** A stop has come that cuts the run off. */
  private get halted(): boolean {
    return this.stopping !== undefined && this.stopping.status !== 'finished'
  }

  onValidationStart(): Promise<void> {
    return this.callbacks.call('onValidationStart', this)
  }

  async onValidationBatch(event: ValidationStepEvent): Promise<void> {
    this.hub.emit(event)
    await this.callbacks.call('onValidationBatch', this, event)
  }

  async onValidationEnd(event: ValidationEvent): Promise<void> {
    this.hub.emit(event)
    await this.callbacks.call('onValidationEnd', this, event)
  }

  unsound(what: string, first: NonFinite | null): Promise<EffnetError> {
    this.weightsSound = false
    const { step } = this.progress
    return this.notFinite(what, first, { step, lr: learningRate(this.schedule!, step - 1) })
  }

  // ---- the run

  async fit(options: FitOptions): Promise<FitResult> {
    const { signal } = this.given
    const onAbort = () => this.stop('aborted', 'aborted')
    if (signal?.aborted) onAbort()
    signal?.addEventListener('abort', onAbort, { once: true })
    try {
      return await this.execute(options)
    } catch (cause) {
      await this.fail(cause)
      throw cause
    } finally {
      signal?.removeEventListener('abort', onAbort)
      await this.teardown()
      this.settle()
    }
  }

  private async execute(options: FitOptions): Promise<FitResult> {
    checkClasses(this.model, options.train)
    if (options.val) checkClasses(this.model, options.val)
    checkTrainable(this.model)
    await checkImageDecoder(this.options.dataBackend)
    const { folder } = this
    if (folder) this.lock = await lockFolder(folder, options.resume)
    const resume = await findResume(options.resume, folder, (...w) => this.warn(...w))
    if (resume) {
      const done = finishedResult(resume, this.options)
      if (done) return this.returnFinished(resume, done, options.train)
    }
    if (folder) {
      this.lock ??= await RunLock.take(folder.dir)
      this.continued = await folder.isRun()
      await folder.open(this.mayContinue(options.resume))
    }
    this.data = await dataFingerprint(options.train)
    this.fitBatchSize(options.train)
    if (resume) this.goOnFrom(resume)
    // From here on the run is ours: a resume that cannot be leaves what it found.
    this.owned = true
    await this.writeStatus('running')
    await this.prepare(options, resume)
    const start = this.startEvent(options, resume)
    this.hub.emit(start)
    await this.callbacks.call('onFitStart', this, start)
    const reason = await this.epochs()
    return this.finish(reason)
  }

  private goOnFrom(resume: ResumePoint): void {
    const warnings = resumeWarnings(resume, this.options, this.data!, this.model.frozen, machineState(this.model.session))
    for (const { code, message, hint } of warnings) this.warn(code, message, hint)
    this.progress.load(resume.state)
    this.resumedFrom = { path: resume.dir, step: resume.state.step }
  }

  /** A path continues the folder that holds it; from elsewhere it starts a new folder. */
  private mayContinue(resume: FitOptions['resume']): boolean {
    if (resume === undefined) return false
    if (resume === 'auto' || resume === 'last') return true
    return this.folder !== undefined && !path.relative(this.folder.dir, path.resolve(resume)).startsWith('..')
  }

  private async prepare({ train, val }: FitOptions, resume: ResumePoint | undefined): Promise<void> {
    const { model } = this
    const o = this.options
    model.adopt(train.classes, {
      imageSize: o.imageSize,
      size: o.evalImageSize,
      cropPct: o.cropPct,
      interpolation: o.interpolation,
      exifOrientation: o.exifOrientation,
    })
    this.unlockedBefore = model.session.unlockedBytes
    this.readers = new Readers(model, { train, ...(val ? { val } : {}) }, o, (...w) => this.warn(...w))
    if (this.readers.val) this.validation = new Validation(this, this.readers.val)
    this.stepsPerEpoch = Math.floor(this.readers.train.batches / o.accumulate)
    this.totalSteps = Math.min(o.maxEpochs * this.stepsPerEpoch, o.maxSteps ?? Number.POSITIVE_INFINITY)
    if (this.given.logEvery === undefined) this.options = { ...o, logEvery: logInterval(this.totalSteps) }
    this.schedule = {
      ...o.schedule,
      lr: o.optimizer.lr,
      warmupStart: o.recipe === 'finetune' ? 1 : 0,
      stepsPerEpoch: this.stepsPerEpoch,
      totalSteps: this.horizon(),
    }
    this.checkWarmup()
    this.checkMonitor(metricNames(val !== undefined, o), true)
    await this.bind(resume)
    await this.openLogs(resume, val !== undefined)
    await this.callbacks.call('onSetup', this)
    if (resume) {
      this.callbacks.load(resume.state.callbacks)
      await this.callbacks.call('onCheckpointLoad', this, resume.dir)
    }
  }

  /** A recipe's own is made to fit. */
  private checkWarmup(): void {
    const { warmupEpochs, schedule } = this.given
    const asked = warmupEpochs ?? (typeof schedule === 'object' ? schedule.warmupEpochs : undefined)
    const { lr, totalSteps, stepsPerEpoch } = this.schedule!
    if (asked === undefined || asked === 0 || Math.round(asked * stepsPerEpoch) < totalSteps) return
    const highest = learningRate(this.schedule!, totalSteps - 1)
    this.warn(
      'warmup',
      `the warm-up of ${asked} epochs does not end within the run: the learning rate rises to ${highest.toPrecision(3)}, not to ${lr}`,
      `warmupEpochs: ${halfOf(totalSteps / stepsPerEpoch)} is half of the run`,
    )
  }

  /** One that was asked for; a callback that hears of validations may add its own to them. */
  private checkMonitor(names: readonly string[], ahead: boolean): void {
    const monitor = this.given.checkpoint?.monitor
    if (monitor === undefined || names.includes(monitor) || (ahead && this.callbacks.has('onValidationEnd'))) return
    throw noSuchMetric('checkpoint.monitor', monitor, names)
  }

  /** The schedule spans the epochs asked for; where only steps were, those. */
  private horizon(): number {
    const byEpochs = this.options.maxEpochs * this.stepsPerEpoch
    const { maxSteps } = this.options
    return this.given.maxEpochs === undefined && maxSteps !== null ? maxSteps : byEpochs
  }

  private fitBatchSize({ length }: ImageDataset): void {
    const { batchSize, accumulate } = this.options
    const fitted = fittedBatch(this.options, length)
    if (fitted.batchSize !== batchSize) {
      this.warn('batch-size', `batchSize ${batchSize} is more than the ${length} training images; it is ${length} now`)
    } else if (fitted.accumulate !== accumulate) {
      this.warn(
        'batch-size',
        `${accumulate} batches of ${batchSize} are more than the ${length} training images; accumulate is ${fitted.accumulate} now`,
      )
    }
    this.options = { ...this.options, ...fitted }
  }

  /** Compiles the training step and fills weights, optimizer state and moving average. */
  private async bind(resume: ResumePoint | undefined): Promise<void> {
    const o = this.options
    const { session, plans } = this.model
    const frozen = new Set(this.model.frozen)
    session.deterministic = o.deterministic
    session.listen({
      onWarning: (...w) => this.warn(...w),
      onMeasuring: (measuring) => this.hub.emit({ type: 'kernels', ...measuring }),
    })
    session.tuning?.resume(resume?.state.kernels, o.deterministic)
    await plans.exclusive(async () => {
      this.plan = await session.trainPlan({
        batchSize: o.batchSize,
        imageSize: o.imageSize,
        optimizer: { name: o.optimizer.name, nesterov: o.optimizer.nesterov },
        labelSmoothing: o.labelSmoothing,
        dropRate: o.dropRate,
        dropPathRate: o.dropPathRate,
        bnMomentum: o.bnMomentum,
        ema: o.ema > 0,
        clip: o.clipNorm > 0,
        accumulates: o.accumulate > 1,
        halfWeightGradients: o.halfWeightGradients,
        ...(frozen.size > 0 ? { frozen: (name: string) => frozen.has(name) } : {}),
      })
      await session.resetOptimizer()
      if (o.lossScale) {
        const kept = resume?.state.options.lossScale ? resume.state.lossScale : null
        this.lossScale = { scale: o.lossScale.initial, growth: 0, ...kept, skipped: this.progress.skipped }
        session.lossScale = this.lossScale
      }
      const kept = resume !== undefined && o.ema > 0 && (await hasAverage(resume.dir))
      if (resume) await readTrainingState(session, resume.dir, { optimizer: o.optimizer.name, ema: kept })
      if (o.ema === 0 || kept) return
      // A run that begins to average begins with the weights it has.
      await session.resetEma()
      this.progress.emaUpdates = 0
    })
    this.weightsSound = true
  }

  private async openLogs(resume: ResumePoint | undefined, validates: boolean): Promise<void> {
    const { folder } = this
    if (!folder) return
    const o = this.options
    const csv = new CsvLogger(folder, metricNames(validates, o))
    const jsonl = new JsonlLogger(folder, o.logEvery)
    const from = this.continued ? resume?.state : undefined
    await csv.begin(from)
    await jsonl.begin(from)
    this.logs = [csv, jsonl]
    this.callbacks = new CallbackList([...this.logs, ...(this.given.callbacks ?? [])] as Callback[])
    await folder.writeConfig(this.given.config ?? plainOptions(this.given), o)
    await folder.writeEnvironment(this.given.command, o.precision, this.model.session)
    this.keeper = new CheckpointKeeper(folder, this.model, { optimizer: o.optimizer.name, ema: o.ema > 0 }, async (event) => {
      this.hub.emit(event)
      await this.callbacks.call('onCheckpointSave', this, event)
    })
  }

  private startEvent({ train, val }: FitOptions, resume: ResumePoint | undefined): StartEvent {
    const { epoch, step, sample } = this.progress
    return {
      type: 'start',
      options: this.options,
      stepsPerEpoch: this.stepsPerEpoch,
      totalSteps: this.totalSteps,
      trainImages: train.length,
      valImages: val?.length ?? 0,
      classes: train.classes,
      ...(resume ? { resumed: { epoch, step, sample, path: resume.dir } } : {}),
    }
  }

  // ---- epochs and steps

  private get over(): boolean {
    const { epoch, step } = this.progress
    return epoch >= this.options.maxEpochs || step >= (this.options.maxSteps ?? Number.POSITIVE_INFINITY)
  }

  private async epochs(): Promise<string> {
    while (!this.over && !this.stopping) {
      const complete = await this.epochSteps()
      if (!complete || !(await this.endOfEpoch())) break
    }
    if (this.stopping) return this.stopping.reason
    return this.progress.epoch >= this.options.maxEpochs ? 'epochs' : 'steps'
  }

  /** False when the run ended within the epoch. */
  private async epochSteps(): Promise<boolean> {
    const { progress, options } = this
    const loader = this.readers!.train
    loader.load({ epoch: progress.epoch, sample: progress.sample, seed: options.seed })
    this.speed.startEpoch()
    await this.callbacks.call('onEpochStart', this)
    let from = performance.now()
    const stage = (batch: NativeBatch) => this.plan!.prefetch({ batch: batch.handle })
    for await (const batch of this.readers!.epoch(stage, this.signal)) {
      const updated = await this.trainStep(batch, performance.now() - from)
      from = performance.now()
      if (!updated) continue
      await this.afterStep()
      if (this.stopping || this.over) return this.over && !this.stopping && progress.stepInEpoch >= this.stepsPerEpoch
      // What is left is too few for another update.
      if (options.accumulate > 1 && progress.stepInEpoch >= this.stepsPerEpoch) break
      from = performance.now()
    }
    this.parts.length = 0
    this.updating = false
    // The batch that was awaited may never come.
    if (this.halted) return false
    if (progress.stepInEpoch === 0) throw new EffnetError('EFF_DATA_EMPTY', 'an epoch had no complete batch of readable images')
    return true
  }

  /** False where the update is still to come. */
  private async trainStep(batch: NativeBatch, waitMs: number): Promise<boolean> {
    const { progress, parts } = this
    const { accumulate } = this.options
    if (parts.length === 0 && this.callbacks.has('onStepStart')) await this.callbacks.call('onStepStart', this)
    const scalars = stepScalars(this.options, this.schedule!, progress, parts.length)
    const started = performance.now()
    this.weightsSound = false
    this.updating = accumulate > 1
    const result = await this.model.plans.exclusive(() => this.soundStep({ batch: batch.handle }, scalars))
    const stepMs = performance.now() - started
    parts.push({ result, stepMs, waitMs })
    this.speed.count(batch.count, stepMs, waitMs)
    if (parts.length < accumulate) return false
    const whole = mean(parts)
    parts.length = 0
    this.updating = false
    this.weightsSound = true
    progress.step++
    progress.stepInEpoch++
    progress.sample = batch.nextSample
    const skipped = this.lossScale !== null && this.lossScale.skipped > progress.skipped
    if (skipped) progress.skipped = this.lossScale!.skipped
    if (this.options.ema > 0 && !skipped) progress.emaUpdates++
    if (Number.isFinite(whole.result.loss)) progress.running.add(whole.result.loss, whole.result.ranks)
    const event = this.stepEvent(whole.result, scalars.lr!, whole.stepMs, whole.waitMs)
    this.hub.emit(event)
    await this.callbacks.call('onStepEnd', this, event)
    if (this.halted) this.halt.abort()
    return true
  }

  private stepEvent(result: StepResult, lr: number, stepMs: number, waitMs: number): StepEvent {
    const { progress, speed } = this
    const scale = this.lossScale && { lossScale: this.lossScale.scale, skippedSteps: progress.skipped }
    return {
      type: 'step',
      epoch: progress.epoch + 1,
      step: progress.step,
      stepInEpoch: progress.stepInEpoch,
      stepsPerEpoch: this.stepsPerEpoch,
      totalSteps: this.totalSteps,
      loss: result.loss,
      meanLoss: progress.running.loss,
      top1: progress.running.top1,
      lr,
      ...(result.gradNorm === undefined ? {} : { gradNorm: result.gradNorm }),
      ...scale,
      imagesPerS: speed.imagesPerS,
      dataWait: speed.dataWait,
      stepMs,
      waitMs,
      elapsedMs: progress.elapsedMs,
    }
  }

  /** A step, or EFF_NAN that names where the first NaN or infinity was. */
  private async soundStep(input: StepInput, scalars: Partial<StepScalars>): Promise<StepResult> {
    const plan = this.plan!
    const scale = this.lossScale?.scale ?? 1
    let what = 'the update is not finite'
    try {
      const result = await plan.step(input, scalars)
      if (this.lossScale) this.lossScale = this.model.session.lossScale
      const { loss } = result
      // Of another batch than an update's last it is that of the update before.
      const gradNorm = scalars.part! + 1 === scalars.parts ? result.gradNorm : undefined
      if (Number.isFinite(loss) && (gradNorm === undefined || Number.isFinite(gradNorm))) return result
      // A step that was skipped: a smaller scale may do.
      if (scale > 1) return result
      what = Number.isFinite(loss) ? `the norm of the gradients is ${gradNorm}` : `loss is ${loss}`
    } catch (cause) {
      if (!(cause instanceof EffnetError) || cause.code !== 'EFF_NAN') throw cause
    }
    const first = await plan.findNonFinite(input, scalars)
    throw await this.notFinite(what, first, { step: this.progress.step + 1, lr: scalars.lr! })
  }

  private async notFinite(what: string, first: NonFinite | null, at: { step: number; lr: number }): Promise<EffnetError> {
    const { keeper, folder, resumedFrom } = this
    // A save in work is of a step before.
    await keeper?.settle().catch(() => undefined)
    const saved = keeper && folder && keeper.savedStep >= 0 ? { path: folder.last, step: keeper.savedStep } : resumedFrom
    const checkpoint = folder ? (saved ?? null) : undefined
    return notFinite({ what, ...at, epoch: this.progress.epoch + 1, first, checkpoint })
  }

  private async afterStep(): Promise<void> {
    const { progress, options, keeper } = this
    await this.warnings
    if (options.maxTimeMs !== null && progress.processMs >= options.maxTimeMs) this.stop('time', 'interrupted')
    if (this.reopenWanted) {
      this.reopenWanted = false
      for (const log of this.logs) await log.reopen()
      await this.writeStatus('running')
    }
    if (!keeper || this.stopping || this.over) return
    const { everySteps, everyMinutes } = options.checkpoint
    const due =
      this.checkpointWanted ||
      (everySteps > 0 && progress.step % everySteps === 0) ||
      (everyMinutes > 0 && keeper.minutesSinceSave >= everyMinutes)
    this.checkpointWanted = false
    if (due) await this.save(false)
    faultPoint(`step:${progress.step}`)
    if (this.folder && this.folder.statusAge > STATUS_EVERY_MS) await this.writeStatus('running')
  }

  // ---- ends

  /**
   * Validation, best, logs, checkpoint. `partial`: the run ends within the epoch because its steps are done.
   * False when a stop came during validation; the epoch then ends anew when the run is resumed.
   */
  private async endOfEpoch(partial = false): Promise<boolean> {
    const { progress, options, speed } = this
    const epoch = progress.epoch + 1
    const done = partial ? epoch - 1 : epoch
    const last = done >= options.maxEpochs || progress.step >= (options.maxSteps ?? Number.POSITIVE_INFINITY)
    const metrics = this.runningMetrics()
    const due = last || partial || (options.valEvery > 0 && done % options.valEvery === 0)
    if (due && this.validation) {
      const measured = await this.validation.run(epoch)
      if (!measured) return false
      Object.assign(metrics, measured)
    }
    metrics['lr'] = learningRate(this.schedule!, Math.max(0, progress.step - 1))
    if (this.lossScale) {
      metrics['loss_scale'] = this.lossScale.scale
      metrics['skipped_steps'] = progress.skipped
      if (progress.skipped === progress.step) this.warn('updates-skipped', ...allSkipped(progress.step, this.lossScale.scale))
    }
    metrics['images_per_s'] = speed.imagesPerS
    metrics['data_wait'] = speed.dataWait
    if (due) this.checkMonitor(Object.keys(metrics), false)
    const best = progress.noteBest(metrics, options.checkpoint, epoch)
    progress.metrics = metrics
    if (!partial) progress.nextEpoch()
    const event: EpochEvent = { type: 'epoch', epoch, step: progress.step, metrics, best, elapsedMs: progress.elapsedMs }
    this.hub.emit(event)
    await this.callbacks.call('onEpochEnd', this, event)
    if (this.folder) await this.writeStatus('running')
    const { everyEpochs } = options.checkpoint
    if (last || partial || this.stopping) this.bestAtEnd = best
    else if (best || (everyEpochs > 0 && done % everyEpochs === 0)) await this.save(best)
    return true
  }

  private runningMetrics(): Metrics {
    const { running } = this.progress
    return { 'train/loss': running.loss, 'train/top1': running.top1 }
  }

  private async finish(ended: string): Promise<FitResult> {
    const { progress, folder, keeper } = this
    const whole = progress.stepInEpoch === 0 || (!this.halted && (await this.endOfEpoch(true)))
    // What was measured at the end of an earlier epoch does not belong to these weights.
    if (!whole) progress.metrics = this.runningMetrics()
    await this.measureEnd()
    // A stop that comes from here on finds the run at its end.
    const { stopping, halted: cut } = this
    const reason = cut ? stopping!.reason : ended
    if (cut) await this.callbacks.call('onInterrupt', this, reason)
    const result = this.result(cut ? 'interrupted' : 'finished', reason)
    if (keeper && folder) {
      // Before the checkpoint that says the run is over: a crash between the two leaves nothing out.
      const unwritten = await this.writeResults(result)
      await this.save(this.bestAtEnd, cut || unwritten ? null : result)
      await keeper.settle()
      if (unwritten) throw unwritten
      await this.writeOutcome(result)
    }
    await this.callbacks.call('onFitEnd', this, result)
    await this.warnings
    this.concluded = true
    if (stopping?.status === 'aborted') {
      throw new EffnetError('EFF_ABORTED', `training was aborted after step ${progress.step}`, {
        cause: this.given.signal?.reason,
        details: { step: progress.step, checkpoint: result.checkpoint ?? null },
      })
    }
    return result
  }

  /**
   * Weights that no epoch's end measured: a callback ended the run after an epoch without validation, or the run had ended before
   * but for its results, whose details are in no checkpoint.
   */
  private async measureEnd(): Promise<void> {
    const { validation, progress, options } = this
    if (!validation || this.halted || validation.step === progress.step) return
    const measured = await validation.run(progress.epoch)
    if (!measured) return
    Object.assign(progress.metrics, measured)
    if (progress.noteBest(measured, options.checkpoint, progress.epoch)) this.bestAtEnd = true
  }

  private result(status: FitResult['status'], reason: string): FitResult {
    const { progress, folder } = this
    const unlockedBytes = this.model.session.unlockedBytes - this.unlockedBefore
    return {
      status,
      reason,
      epoch: progress.epoch,
      step: progress.step,
      metrics: { ...progress.metrics },
      ...(progress.best ? { best: progress.best } : {}),
      // A run of one step has start-up alone.
      imagesPerS: progress.imagesPerS || this.speed.imagesPerS,
      dataWait: progress.dataWait,
      elapsedMs: progress.elapsedMs,
      ...this.readers!.result(),
      ...(unlockedBytes > 0 ? { unlockedBytes } : {}),
      ...(folder ? runPaths(folder, progress.best !== null) : {}),
    }
  }

  private async save(best: boolean, result: FitResult | null = null): Promise<void> {
    const { options, progress, data } = this
    await this.keeper?.save(
      {
        format: 'effnet-state',
        version: CHECKPOINT_VERSION,
        seed: options.seed,
        ...progress.state(),
        options,
        lossScale: this.lossScale ?? (progress.skipped > 0 ? { scale: 1, growth: 0, skipped: progress.skipped } : null),
        schedule: { stepsPerEpoch: this.stepsPerEpoch, totalSteps: this.totalSteps },
        callbacks: this.callbacks.state(),
        frozen: this.model.frozen,
        data: data!,
        machine: machineState(this.model.session),
        kernels: (!this.options.deterministic && this.model.session.tuning?.state) || null,
        result,
      },
      best,
    )
  }

  private async writeStatus(state: RunState, message: string | null = null): Promise<void> {
    const { epoch, step, best } = this.progress
    await this.folder?.writeStatus({ state, epoch, step, best, message })
  }

  /** What went wrong: the weights are saved all the same. */
  private async writeResults(result: FitResult): Promise<unknown> {
    const folder = this.folder!
    try {
      await folder.settleLogs()
      await folder.writeBadFiles(result.badFiles, this.continued)
      await folder.writeResults({ result, details: storedDetails(this.validation?.details) })
      return undefined
    } catch (cause) {
      return cause
    }
  }

  private async writeOutcome(result: FitResult): Promise<void> {
    const folder = this.folder!
    await this.writeStatus(result.status === 'finished' ? 'finished' : 'interrupted', result.reason)
    try {
      const { writeReport } = await import('../report/report.js')
      await writeReport(folder.dir)
    } catch (cause) {
      this.warn('report', `report.html was not written: ${(cause as Error).message}`)
    }
  }

  /** Leaves what is good: the checkpoint before, or one of now where the weights are sound. */
  private async fail(cause: unknown): Promise<void> {
    const { folder, keeper, progress } = this
    if (this.concluded) return
    await this.quietly('onException', () => this.callbacks.call('onException', this, cause))
    if (!this.owned || !folder) return
    if (keeper) {
      await this.quietly('checkpoint', () => keeper.settle())
      const storage = cause instanceof EffnetError && /^EFF_(CKPT|IO)/.test(cause.code)
      if (this.weightsSound && !storage && progress.step > keeper.savedStep) {
        await this.quietly('checkpoint', async () => {
          await this.save(false)
          await keeper.settle()
        })
      }
    }
    await folder.settleLogs()
    await this.quietly('bad_files.csv', () => folder.writeBadFiles(this.readers?.result().badFiles ?? [], this.continued))
    const message = cause instanceof EffnetError ? `${cause.code}: ${cause.message}` : String(cause)
    if (cause instanceof EffnetError && cause.code === 'EFF_CKPT_NO_SPACE') folder.noteFull()
    await this.quietly('status.json', () => this.writeStatus('failed', message))
  }

  /** For clean-up after an error: a second error becomes a warning. */
  private async quietly(what: string, work: () => Promise<void>): Promise<void> {
    try {
      await work()
    } catch (cause) {
      this.warn('after-error', `${what}: ${(cause as Error).message}`)
    }
  }

  private async teardown(): Promise<void> {
    this.readers?.close()
    this.plan?.close()
    this.plan = undefined
    this.model.session.listen({})
    await this.quietly('onTeardown', () => this.callbacks.call('onTeardown', this))
    await this.lock?.release()
  }

  /** A run that has reached its end is not run again; the model gets its weights. */
  private async returnFinished(resume: ResumePoint, done: FitResult, train: ImageDataset): Promise<FitResult> {
    const own = this.folder && path.dirname(path.dirname(resume.dir)) === this.folder.dir
    if (this.folder && !own) throw nothingLeft(resume, done, this.folder)
    await this.model.loadWeights(resume.dir)
    const changes = changedOptions(resume.state.options, { ...this.options, ...fittedBatch(this.options, train.length) })
    if (changes.length > 0) {
      const { epoch, step } = done
      this.warn(
        'resume-finished',
        `the run is finished (epoch ${epoch}, step ${step}), nothing was trained; of no effect: ${changes.join(', ')}`,
        trainsOn(done),
      )
    }
    if (own) {
      this.owned = true
      this.progress.load(resume.state)
      // The process was killed after its last checkpoint.
      if ((await this.folder!.readStatus())?.state !== 'finished') await this.writeOutcome(done)
    }
    return { ...done, ...(own ? runPaths(this.folder!, done.best !== undefined) : { checkpoint: resume.dir }) }
  }
}

function checkTrainable(model: Model): void {
  if (model.parameters().some((p) => p.trainable)) return
  throw new EffnetError('EFF_CONFIG_VALUE', `every parameter of ${model.name} is frozen: nothing is left to train`, {
    hint: "model.unfreeze('classifier')   (--freeze backbone)",
  })
}

const halfOf = (epochs: number): number => Number((epochs / 2).toPrecision(2))
