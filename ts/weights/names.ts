/**
 * Tensor names of the libraries whose checkpoints we read. All list the tensors of an architecture in one order, so tensor i of
 * one is tensor i of another; only timm's names are ours.
 */
import { featureLayers, type Network, networkOf } from '../nn/blocks.js'
import type { ModelConfig } from '../nn/config.js'
import { modelParams } from '../nn/params.js'

export type Naming = 'timm' | 'torchvision' | 'nvidia-pytorch'

/** A tensor that only one library has; its presence tells the naming. */
const WITNESS: Record<Naming, string> = {
  timm: 'conv_stem.weight',
  torchvision: 'features.0.0.weight',
  'nvidia-pytorch': 'stem.conv.weight',
}

/** Prefixes of module paths, in the order of `featureLayers` and the classifier: convolution and BN, or the two of an SE. */
type Modules = readonly [string, string] | readonly [string]

function torchvisionModules(net: Network): Modules[] {
  const last = Math.max(...net.blocks.map((b) => b.stage)) + 2
  return [
    ['features.0.0', 'features.0.1'],
    ...net.blocks.flatMap((b) => {
      const prefix = `features.${b.stage + 1}.${b.position}.block`
      return b.layers.map((layer, i): Modules => {
        const [first, second] = layer.type === 'se' ? ['fc1', 'fc2'] : ['0', '1']
        return [`${prefix}.${i}.${first}`, `${prefix}.${i}.${second}`]
      })
    }),
    [`features.${last}.0`, `features.${last}.1`],
    ['classifier.1'],
  ]
}

function nvidiaModules(net: Network): Modules[] {
  const names = { expand: 'expand', depthwise: 'depsep', project: 'proj', stem: 'stem', head: 'features' } as const
  return [
    ['stem.conv', 'stem.bn'],
    ...net.blocks.flatMap((b) => {
      const prefix = `layers.${b.stage}.block${b.position}`
      return b.layers.map((layer): Modules => {
        if (layer.type === 'se') return [`${prefix}.se.squeeze`, `${prefix}.se.expand`]
        const module = `${prefix}.${names[layer.role]}`
        return [`${module}.conv`, `${module}.bn`]
      })
    }),
    ['features.conv', 'features.bn'],
    ['classifier.fc'],
  ]
}

/** Names in `naming` of every tensor of `modelParams(config)`, in its order. */
export function tensorNames(config: ModelConfig, naming: Naming): string[] {
  if (naming === 'timm') return modelParams(config).map((p) => p.name)
  const net = networkOf(config)
  const modules = naming === 'torchvision' ? torchvisionModules(net) : nvidiaModules(net)
  const layers = featureLayers(net)
  return modules.flatMap(([first, second], i) => {
    if (second === undefined) return [`${first}.weight`, `${first}.bias`]
    if (layers[i]!.type === 'se') return [first, second].flatMap((m) => [`${m}.weight`, `${m}.bias`])
    return [`${first}.weight`, ...['weight', 'bias', 'running_mean', 'running_var'].map((leaf) => `${second}.${leaf}`)]
  })
}

/**
 * A file's name for a tensor, as the libraries load it: without the prefix of data-parallel training, and NVIDIA's older
 * `layer1.` as `layers.0.`.
 */
export function canonicalName(name: string): string {
  return name.replace(/^module\./, '').replace(/^layer(\d+)\./, (_, n: string) => `layers.${Number(n) - 1}.`)
}

/** Counters and quantizer ranges carry nothing that a model needs. */
export const isIgnored = (name: string): boolean => name.endsWith('.num_batches_tracked') || name.endsWith('_quantizer._amax')

/** Whose names these (canonical) are; undefined where no stem convolution is among them. */
export function detectNaming(names: { has(name: string): boolean }): Naming | undefined {
  return (Object.keys(WITNESS) as Naming[]).find((naming) => names.has(WITNESS[naming]))
}
