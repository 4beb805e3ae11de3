/** The weights that come with the package: files of models/pretrained named after their model. */
import { existsSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { packageRoot } from '../paths.js'

/** What `effnet predict` runs where nothing else is asked for. */
export const DEFAULT_MODEL = 'tf_efficientnet_b0'

export function pretrainedFiles(): string[] {
  const folder = path.join(packageRoot(), 'models/pretrained')
  if (!existsSync(folder)) return []
  return readdirSync(folder)
    .filter((f) => f.endsWith('.safetensors'))
    .sort()
    .map((f) => path.join(folder, f))
}

/** The file with weights of `model`, where there is one. */
export const bundledWeights = (model: string): string | undefined =>
  pretrainedFiles().find((file) => path.basename(file) === `${model}.safetensors`)
