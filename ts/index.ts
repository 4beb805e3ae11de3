/** The public surface of effnet-native. */

import { packageVersion } from './version.js'

export { imageFolder, isImagePath } from './data/image_folder.js'
export type {
  BadFile,
  DataBackend,
  DataLoaderOptions,
  EvalTransform,
  ImageBatch,
  ImageDataset,
  ImageFolder,
  ImageFolderOptions,
  ImageInput,
  ImageLoader,
  ImageSplitOptions,
  Interpolation,
  LoaderState,
  RawImage,
  TrainTransform,
  Transform,
} from './data/types.js'
export { EffnetError, type EffnetErrorOptions, type ErrorCode } from './errors.js'
export type {
  ClassScore,
  CreateModelOptions,
  Device,
  Embedding,
  EmbeddingResult,
  EmbedOptions,
  FreezeSelector,
  LoadModelOptions,
  ModelSummary,
  ParameterInfo,
  Precision,
  PrecisionInput,
  Prediction,
  PredictionError,
  PredictionResult,
  PredictOptions,
  Preprocessing,
  WeightsSource,
} from './infer/types.js'
export { createModel, type ListedModel, type ListModelsOptions, listModels, loadModel, type Model } from './model.js'
export { type Dialect, type ModelConfig, type ModelInfo, type ModelName, modelInfo } from './nn/index.js'
export { writeReport } from './report/report.js'
export { EarlyStopping, type EarlyStoppingOptions } from './train/callbacks.js'
export { evaluateModel } from './train/evaluate.js'
export { learningRate, type ScheduleSpec } from './train/schedule.js'
export { Trainer } from './train/trainer.js'
export type {
  AugmentOptions,
  Callback,
  CheckpointEvent,
  CheckpointOptions,
  EmaOptions,
  EndEvent,
  EpochEvent,
  EvaluateDetails,
  EvaluateModelOptions,
  EvaluateOptions,
  EvaluateResult,
  FitOptions,
  FitResult,
  KernelsEvent,
  Metrics,
  OptimizerName,
  OptimizerOptions,
  ResolvedOptions,
  ScheduleName,
  ScheduleOptions,
  StartEvent,
  StepEvent,
  TrainerContext,
  TrainerEvent,
  TrainerOptions,
  ValidationEvent,
  ValidationStepEvent,
  WarningEvent,
  WorstError,
} from './train/types.js'
export type { Naming } from './weights/index.js'

/** Of the package, as package.json has it. */
export const version: string = packageVersion()
