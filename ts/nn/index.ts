/** Models as data and as graphs: `getModelConfig` names one, `modelParams` lists its tensors, `buildEfficientNet` writes its graph. */
export { type Block, type ConvLayer, featureLayers, type Network, networkOf, type SeLayer } from './blocks.js'
export {
  DIALECTS,
  type Dialect,
  evalGeometry,
  evalResize,
  type Family,
  type ModelConfig,
  type Padding,
  type Preprocessing,
  pixelNorm,
  type StageConfig,
} from './config.js'
export { type BuildOptions, type BuiltNetwork, buildEfficientNet, DROPOUT_STREAM } from './efficientnet.js'
export { type Distribution, headRule, initRules } from './init.js'
export { countMacs, type ModelInfo, modelInfo, modelParams, type ParamDef } from './params.js'
export { type ArchName, type ConfigOverrides, getModelConfig, listModels, type ModelName } from './registry.js'
