/** Class names of ImageNet-1k, for models whose weights come without names of their own. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { packageRoot } from '../paths.js'

let names: readonly string[] | undefined

/** 1000 names by class index: all names of the synset, the usual one first ("tench, Tinca tinca"). "crane" is a bird (134) and a machine (517). */
export function imagenetLabels(): readonly string[] {
  names ??= readFileSync(path.join(packageRoot(), 'models/imagenet_labels.tsv'), 'utf8')
    .trimEnd()
    .split('\n')
    .slice(1)
    .map((line) => line.split('\t')[2]!)
  return names
}
