/** Networks of a few blocks, for whole steps that are emulated kernel by kernel. */
import { type ConfigOverrides, getModelConfig, type ModelConfig } from '../../ts/nn/index.js'

type Stage = ModelConfig['stages'][number]

/** A depthwise block with squeeze-and-excitation over 8 channels. */
export const BLOCK: Stage = { op: 'mbconv', kernel: 3, stride: 1, expand: 1, in: 8, out: 8, repeats: 1, se: true }

/** As `name` in everything but its width and depth. */
export function smallConfig(
  name: string,
  stages: readonly Stage[],
  { head = 16, ...overrides }: ConfigOverrides & { head?: number } = {},
): ModelConfig {
  return { ...getModelConfig(name, { numClasses: 3, ...overrides }), stem: 8, stages, head }
}
