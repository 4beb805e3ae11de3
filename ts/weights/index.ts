/** Weights in and out: safetensors files under the names of timm, torchvision and NVIDIA's PyTorch trainer. */
export { type MatchOptions, matchWeights, transferOf, type WeightsMatch } from './load.js'
export { canonicalName, detectNaming, type Naming, tensorNames } from './names.js'
export {
  type HeaderToWrite,
  layoutSafetensors,
  type NewTensor,
  openSafetensors,
  type SafetensorsDtype,
  type SafetensorsFile,
  type SafetensorsHeader,
  type TensorEntry,
} from './safetensors.js'
export { modelFile } from './save.js'
