/** A classifier: configuration, class names, and weights in an engine session. Everything public about a model hangs here. */
import { constants } from 'node:buffer'
import { stat } from 'node:fs/promises'
import path from 'node:path'
import { ARENA } from './binding.js'
import type { ImageInput } from './data/types.js'
import { EffnetError } from './errors.js'
import { selectNames } from './infer/freeze.js'
import { imagenetLabels } from './infer/labels.js'
import { PlanCache } from './infer/plans.js'
import { normalizePrecision } from './infer/precision.js'
import { asList, collect, embedStream, predictStream } from './infer/predict.js'
import type {
  CreateModelOptions,
  EmbeddingResult,
  EmbedOptions,
  FreezeSelector,
  LoadModelOptions,
  ModelSummary,
  ParameterInfo,
  Precision,
  PredictionResult,
  PredictOptions,
  WeightsSource,
} from './infer/types.js'
import {
  countMacs,
  getModelConfig,
  type ModelConfig,
  type ModelInfo,
  type ModelName,
  modelInfo,
  listModels as modelNames,
  pixelNorm,
} from './nn/index.js'
import { checkKeys } from './option_keys.js'
import { deviceName } from './runtime/device.js'
import { initParams } from './runtime/init.js'
import { Session } from './runtime/session.js'
import { modelJson, readModelJson, resolveCheckpoint, startCheckpoint } from './train/checkpoint.js'
import { EMA_FILE, MODEL_FILE, readWeightsFile, writeWeightsFile } from './train/tensor_files.js'
import { bundledFile, bundledFiles } from './weights/bundled.js'
import { canonicalName, detectNaming, type Naming, openSafetensors } from './weights/index.js'

const IMAGENET_CLASSES = 1000
/** Last tensor of a classifier under the names of timm, torchvision and NVIDIA. */
const CLASSIFIER_BIASES = ['classifier.bias', 'classifier.1.bias', 'classifier.fc.bias']

const LOAD_KEYS = {
  device: true,
  precision: true,
  threads: true,
  memoryLimit: true,
  deterministic: true,
  ema: true,
} as const satisfies Record<keyof LoadModelOptions, true>
const CREATE_KEYS = {
  pretrained: true,
  numClasses: true,
  classes: true,
  compat: true,
  imageSize: true,
  device: true,
  precision: true,
  threads: true,
  memoryLimit: true,
  seed: true,
  deterministic: true,
} as const satisfies Record<keyof CreateModelOptions, true>

/** How `fit` changed what an image becomes before the network. */
export interface EvaluationSettings {
  size: number
  cropPct: number
  interpolation: 'bicubic' | 'bilinear'
  exifOrientation: boolean
}

export class Model {
  /** Evaluation plans; the engine's own. */
  readonly plans: PlanCache
  private currentConfig: ModelConfig
  private classNames: readonly string[] | undefined
  private source: WeightsSource
  private readonly frozenNames = new Set<string>()
  private closing: Promise<void> | undefined
  /** Where the weights are: in the average's arena while that is measured. */
  private weightsArena: number = ARENA.weights

  /** Use `createModel` or `loadModel`. */
  constructor(
    readonly session: Session,
    config: ModelConfig,
    source: WeightsSource,
    classes: readonly string[] | undefined,
  ) {
    this.plans = new PlanCache(session)
    this.currentConfig = config
    this.source = source
    this.classNames = classes
  }

  get name(): string {
    return this.currentConfig.name
  }

  get config(): ModelConfig {
    return this.currentConfig
  }

  get numClasses(): number {
    return this.currentConfig.numClasses
  }

  /** Names of the classes, where known. */
  get classes(): readonly string[] | undefined {
    return this.classNames
  }

  get precision(): Precision {
    return this.session.precision
  }

  get device(): string {
    return this.session.device
  }

  /** Where the weights came from. */
  get weights(): WeightsSource {
    return this.source
  }

  summary(): ModelSummary {
    const parameters = this.parameters().filter((p) => p.role === 'parameter')
    const count = (list: ParameterInfo[]) => list.reduce((sum, p) => sum + p.size, 0)
    const { config } = this
    const { mean, std, interpolation, cropPct } = config.preprocessing
    return {
      name: this.name,
      params: count(parameters),
      trainableParams: count(parameters.filter((p) => p.trainable)),
      gflops: countMacs(config, config.imageSize, config.imageSize) / 1e9,
      imageSize: config.imageSize,
      numClasses: config.numClasses,
      precision: this.precision,
      device: this.device,
      preprocessing: { mean, std, interpolation, cropPct },
      weights: this.source,
    }
  }

  /** Parameters and buffers in the order of the state dict. */
  parameters(): ParameterInfo[] {
    return this.session.slots.map(({ name, info, size, role }) => ({
      name,
      shape: info.torchShape,
      size,
      role,
      trainable: role === 'parameter' && !this.frozenNames.has(name),
    }))
  }

  /**
   * Leaves parameters out of training. A batch normalisation whose scale is frozen uses and keeps its running statistics.
   * Counts for every `fit` that begins afterwards.
   * @throws EFF_INVALID_ARGUMENT when nothing matches
   */
  freeze(selector: FreezeSelector): void {
    for (const name of selectNames(this.parameterNames(), selector)) this.frozenNames.add(name)
  }

  unfreeze(selector: FreezeSelector = 'all'): void {
    for (const name of selectNames(this.parameterNames(), selector)) this.frozenNames.delete(name)
  }

  /** In the order of the state dict. */
  get frozen(): readonly string[] {
    return this.parameterNames().filter((name) => this.frozenNames.has(name))
  }

  /**
   * Classes of images, in input order; an unreadable one gives `{error}` in its place.
   * @throws EFF_ABORTED, EFF_CLOSED
   */
  async predict(images: ImageInput | readonly ImageInput[], options: PredictOptions = {}): Promise<PredictionResult[]> {
    return collect(predictStream(this, asList(images), options))
  }

  /** As `predict`, for any number of images; results come as batches are done. */
  predictStream(
    images: Iterable<ImageInput> | AsyncIterable<ImageInput>,
    options: PredictOptions = {},
  ): AsyncGenerator<PredictionResult> {
    return predictStream(this, images, options)
  }

  /** Pooled features before the classifier, [head width] each. */
  async embed(images: ImageInput | readonly ImageInput[], options: EmbedOptions = {}): Promise<EmbeddingResult[]> {
    return collect(embedStream(this, asList(images), options))
  }

  /**
   * Writes the weights: a path that ends in `.safetensors` gives one file, under timm's names unless `naming` says otherwise; any
   * other a folder that `loadModel` reads, with class names and preprocessing.
   * @throws EFF_INVALID_ARGUMENT for a folder under other names than timm's; EFF_RUN_EXISTS for a folder that holds something else
   */
  async save(target: string, options: { naming?: Naming } = {}): Promise<void> {
    if (typeof target !== 'string' || target.trim() === '') {
      throw new EffnetError('EFF_INVALID_ARGUMENT', 'save needs the path of a folder or of a .safetensors file')
    }
    const { session } = this
    const { naming = 'timm' } = options
    if (target.endsWith('.safetensors')) {
      await this.plans.exclusive(() => writeWeightsFile(session, target, naming, this.weightsArena))
      return
    }
    if (naming !== 'timm') {
      throw new EffnetError('EFF_INVALID_ARGUMENT', `${target}: a folder of ours holds timm's names`, {
        hint: `save('${target}.safetensors', { naming: '${naming}' }) writes one file`,
      })
    }
    await this.plans.exclusive(async () => {
      const { done } = await startCheckpoint(session, path.resolve(target), modelJson(this.config, this.classNames), {
        ema: false,
        weightsArena: this.weightsArena,
      })
      await done
    })
  }

  /** Frees native memory. Idempotent; work in flight fails with EFF_CLOSED or EFF_ABORTED. */
  close(): Promise<void> {
    this.closing ??= this.plans.close().then(() => this.session.close())
    return this.closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** Called by the Trainer: predictions and evaluations use the moving average from now on, or the weights again. */
  async useAverage(on: boolean): Promise<void> {
    await this.plans.exclusive(async () => {
      await this.session.useEma(on)
      this.weightsArena = on ? ARENA.ema : ARENA.weights
    })
  }

  /** Called by the Trainer: the data's class names, and how images were cropped, belong to the model from now on. */
  adopt(classes: readonly string[], evaluation: EvaluationSettings & { imageSize: number }): void {
    this.classNames = [...classes]
    const { size, cropPct, interpolation, exifOrientation, imageSize } = evaluation
    this.currentConfig = {
      ...this.currentConfig,
      imageSize,
      evalSize: size,
      preprocessing: {
        ...this.currentConfig.preprocessing,
        cropPct,
        interpolation,
        exifOrientation,
        cropMode: 'center',
        evalResize: Math.round(size / cropPct),
      },
    }
  }

  /**
   * Reads the weights of a checkpoint or run folder into this model, which must be of the same shape.
   * @throws EFF_CKPT_MISSING, EFF_CKPT_CORRUPT, EFF_WEIGHTS_SHAPE
   */
  async loadWeights(dir: string, options: { ema?: boolean } = {}): Promise<void> {
    const folder = await resolveCheckpoint(dir)
    const { model } = await readModelJson(folder)
    const { config } = this
    if (model.config.name === this.name && !sameConstants(model.config, config)) {
      throw new EffnetError('EFF_WEIGHTS_SHAPE', `${folder} follows other conventions (padding, BN epsilon, pixel constants)`, {
        hint: `loadModel(folder), or createModel('${this.name}', { compat: '${model.config.dialect}' })`,
        details: { checkpoint: model.config.dialect, model: config.dialect },
      })
    }
    if (model.config.name !== this.name || model.config.numClasses !== this.numClasses) {
      const theirs = `${model.config.name} with ${model.config.numClasses} classes`
      throw new EffnetError('EFF_WEIGHTS_SHAPE', `${folder} is of ${theirs}, the model is ${this.name} with ${this.numClasses}`, {
        hint: 'loadModel(folder)',
      })
    }
    const match = await this.plans.exclusive(() =>
      readWeightsFile(this.session, path.join(folder, options.ema ? EMA_FILE : MODEL_FILE)),
    )
    const total = this.session.slots.length
    this.source = { kind: 'checkpoint', path: folder, naming: match.naming, matched: match.transfers.length, total }
    this.classNames = model.classes ?? this.classNames
    this.currentConfig = model.config
  }

  private parameterNames(): string[] {
    return this.session.slots.filter((s) => s.role === 'parameter').map((s) => s.name)
  }
}

/** What a session's plans are made of beside the shapes. */
const sameConstants = (a: ModelConfig, b: ModelConfig): boolean =>
  a.padding === b.padding &&
  a.bnEps === b.bnEps &&
  JSON.stringify(pixelNorm(a.preprocessing)) === JSON.stringify(pixelNorm(b.preprocessing))

export interface ListModelsOptions {
  /** Glob over names with `*` and `?`. */
  filter?: string
  /** Only those whose weights come with the package (or only the others). */
  pretrained?: boolean
}

export interface ListedModel extends ModelInfo {
  /** Its weights come with the package: `createModel(name, { pretrained: true })`. */
  pretrained: boolean
}

/** The models that `createModel` knows, sorted by name. */
export function listModels(options: ListModelsOptions = {}): ListedModel[] {
  const bundled = new Set(bundledFiles().map((file) => path.basename(file, '.safetensors')))
  return modelNames(options.filter)
    .map((name) => ({ ...modelInfo(name), pretrained: bundled.has(name) }))
    .filter((m) => options.pretrained === undefined || m.pretrained === options.pretrained)
}

/** Weights that come with the package. @throws EFF_WEIGHTS_MISSING */
function bundledWeights(name: string): string {
  const file = bundledFile(name)
  if (file !== undefined) return file
  throw new EffnetError('EFF_WEIGHTS_MISSING', `no weights of ${name} come with the package`, {
    hint: 'give a safetensors file (--weights FILE), or use tf_efficientnet_b0',
    details: { bundled: bundledFiles() },
  })
}

/** What the names in a weights file tell: its classes, and whose they are. Nothing where they tell nothing (loading will say more). */
async function describeFile(file: string): Promise<{ classes?: number | undefined; naming?: Naming | undefined }> {
  const { tensors } = await openSafetensors(file)
  const byName = new Map([...tensors.values()].map((entry) => [canonicalName(entry.name), entry]))
  const bias = CLASSIFIER_BIASES.map((name) => byName.get(name)).find((entry) => entry?.shape.length === 1)
  return { classes: bias?.shape[0], naming: detectNaming(byName) }
}

/** A tensor is made and read as one array: what is longer than this Node's arrays is said before minutes are spent on the others. */
export function checkTensorSizes(config: ModelConfig, most = constants.MAX_LENGTH): void {
  const bytes = 4 * config.head * config.numClasses
  if (bytes <= most) return
  const gib = (n: number) => `${(n / 2 ** 30).toFixed(1)} GiB`
  throw new EffnetError(
    'EFF_CONFIG_VALUE',
    `numClasses = ${config.numClasses}: the classifier is an array of ${gib(bytes)}, Node ${process.versions.node} has none above ${gib(most)}`,
    { hint: `numClasses: ${Math.floor(most / 4 / config.head)} or fewer`, details: { bytes, most } },
  )
}

const sessionOptions = ({
  threads,
  memoryLimit,
  deterministic,
}: Pick<LoadModelOptions, 'threads' | 'memoryLimit' | 'deterministic'>) => ({ threads, memoryLimit, deterministic })

/** The session is closed again when what follows its creation fails. */
async function withSession<T>(session: Session, work: (session: Session) => Promise<T>): Promise<T> {
  try {
    return await work(session)
  } catch (cause) {
    session.close()
    throw cause
  }
}

/**
 * A model by name, with random or given weights.
 * @throws EFF_MODEL_UNKNOWN with the nearest names; EFF_WEIGHTS_MISSING, EFF_WEIGHTS_SHAPE, EFF_WEIGHTS_CORRUPT;
 *   EFF_CONFIG_VALUE (the weights follow conventions that the model does not have, or `classes` is no list of names); EFF_PRECISION, EFF_BACKEND_MISSING, EFF_OOM;
 *   EFF_INVALID_ARGUMENT (`seed` is no whole number from 0 to 2^53 - 1)
 */
export async function createModel(name: ModelName | (string & {}), options: CreateModelOptions = {}): Promise<Model> {
  checkKeys('createModel', options, CREATE_KEYS)
  const device = deviceName(options.device === undefined ? 'auto' : options.device)
  const precision = normalizePrecision(options.precision ?? 'fp32')
  const { classes, imageSize } = options
  checkClassNames(classes)
  if (classes && options.numClasses !== undefined && classes.length !== options.numClasses) {
    throw new EffnetError('EFF_CONFIG_VALUE', `${classes.length} class names for numClasses = ${options.numClasses}`)
  }
  if (typeof name !== 'string') {
    throw new EffnetError('EFF_INVALID_ARGUMENT', `createModel needs the name of a model, not ${String(name)}`, {
      hint: 'effnet models list   names all',
    })
  }
  const base = getModelConfig(name).name
  const { pretrained = false } = options
  const file = pretrained === true ? bundledWeights(base) : pretrained === false ? undefined : pretrained
  const inFile = file === undefined ? {} : await describeFile(file)
  const numClasses = options.numClasses ?? classes?.length ?? inFile.classes
  // Weights under another library's names were trained with its constants.
  const dialect = options.compat ?? (inFile.naming === 'timm' ? undefined : inFile.naming)
  const config = getModelConfig(name, {
    ...(dialect === undefined ? {} : { dialect }),
    ...(numClasses === undefined ? {} : { numClasses }),
    ...(imageSize === undefined ? {} : { imageSize }),
  })
  checkTensorSizes(config)
  const session = await Session.create({ config, precision, device, ...sessionOptions(options) })
  return withSession(session, async () => {
    const source = await fillWeights(session, config, file, options.seed ?? 0)
    const names = classes ?? (file !== undefined && config.numClasses === IMAGENET_CLASSES ? imagenetLabels() : undefined)
    return new Model(session, config, source, names)
  })
}

/** @throws EFF_CONFIG_VALUE for what is no list of names: a count too */
function checkClassNames(classes: unknown): void {
  if (classes === undefined || (Array.isArray(classes) && classes.every((name) => typeof name === 'string'))) return
  throw new EffnetError('EFF_CONFIG_VALUE', `classes = ${JSON.stringify(classes) ?? String(classes)}: a list of names`, {
    hint:
      typeof classes === 'number' && Number.isInteger(classes) && classes > 0
        ? `numClasses: ${classes}`
        : "classes: ['cat', 'dog'], or numClasses: 2 where they have no names",
  })
}

async function fillWeights(
  session: Session,
  config: ModelConfig,
  file: string | undefined,
  seed: number,
): Promise<WeightsSource> {
  const total = session.slots.length
  const write = (param: { name: string }, values: Float32Array) => session.write(param.name, values)
  if (file === undefined) {
    await initParams(config, seed, write)
    return { kind: 'random', matched: 0, total }
  }
  const match = await readWeightsFile(session, file, { replaceHead: true })
  if (match.headReplaced) {
    await initParams(config, seed, write, { only: (name) => name.startsWith('classifier.'), newHead: true })
  }
  return {
    kind: 'file',
    path: path.resolve(file),
    naming: match.naming,
    matched: match.transfers.length,
    total,
    ...(match.headReplaced ? { headReplaced: match.headReplaced } : {}),
  }
}

/**
 * A model from a checkpoint folder, or from a run folder (its best checkpoint). Sizes and SHA-256 of the files are checked.
 * @throws EFF_CKPT_MISSING, EFF_CKPT_CORRUPT naming the file, EFF_CKPT_VERSION
 */
export async function loadModel(dir: string, options: LoadModelOptions = {}): Promise<Model> {
  checkKeys('loadModel', options, LOAD_KEYS)
  const device = deviceName(options.device === undefined ? 'auto' : options.device)
  const precision = normalizePrecision(options.precision ?? 'fp32')
  if (typeof dir !== 'string' || dir === '') {
    throw new EffnetError(
      'EFF_INVALID_ARGUMENT',
      `loadModel needs the path of a checkpoint, not ${String(dir) || 'an empty one'}`,
    )
  }
  if (dir.endsWith('.safetensors') && (await stat(dir).catch(() => undefined))?.isFile()) {
    throw new EffnetError('EFF_CKPT_MISSING', `${dir} is a weights file, not a checkpoint folder`, {
      hint: 'createModel(name, { pretrained: file })   (--model NAME --weights FILE)',
    })
  }
  const folder = await resolveCheckpoint(dir)
  const { model, hasEma } = await readModelJson(folder)
  if (options.ema && !hasEma) {
    throw new EffnetError('EFF_CKPT_MISSING', `${folder}: no moving average in this checkpoint`, { hint: 'load it without ema' })
  }
  const session = await Session.create({ config: model.config, precision, device, ...sessionOptions(options) })
  return withSession(session, async () => {
    const total = session.slots.length
    const made = new Model(session, model.config, { kind: 'random', matched: 0, total }, model.classes ?? undefined)
    await made.loadWeights(folder, options.ema === undefined ? {} : { ema: options.ema })
    return made
  })
}
