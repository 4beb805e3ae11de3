/** The weights that come with the package: files of models/pretrained named after their model. */
import { existsSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { packageRoot } from '../paths.js'

export function bundledFiles(): string[] {
  const folder = path.join(packageRoot(), 'models/pretrained')
  if (!existsSync(folder)) return []
  return readdirSync(folder)
    .filter((f) => f.endsWith('.safetensors'))
    .sort()
    .map((f) => path.join(folder, f))
}

/** The file with weights of `model`, where there is one. */
export const bundledFile = (model: string): string | undefined =>
  bundledFiles().find((file) => path.basename(file) === `${model}.safetensors`)
