import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { type Dialect, getModelConfig, listModels, modelParams } from '../../ts/nn/index.js'
import { canonicalName, detectNaming, isIgnored, type Naming, tensorNames } from '../../ts/weights/names.js'

const recorded = JSON.parse(
  readFileSync(new URL('../fixtures/weights/state_dict_names.json', import.meta.url), 'utf8'),
) as Record<string, string[]>

/** Registry name and dialect of a recorded list. */
function modelOf(key: string): { config: ReturnType<typeof getModelConfig>; naming: Naming } {
  const [library, name] = key.split('/') as [Naming, string]
  const ours = name.replaceAll('-', '_').replace('_v2_', 'v2_')
  const dialect: Dialect = library
  return { config: getModelConfig(ours, { dialect }), naming: library }
}

describe.each(Object.keys(recorded))('%s', (key) => {
  const { config, naming } = modelOf(key)
  const lists = recorded[key]!.map((line) => line.split(' ') as [name: string, shape: string])

  test('names in order', () => {
    expect(tensorNames(config, naming)).toEqual(lists.map(([name]) => name))
  })

  test('shapes', () => {
    const params = modelParams(config)
    const actual = params.map((p, i) => {
      // NVIDIA's squeeze layers are matrices.
      const matrix = naming === 'nvidia-pytorch' && p.info.kind === 'se_weights'
      return (
        JSON.stringify(matrix ? p.info.torchShape.slice(0, 2) : p.info.kind === 'linear_weights' ? p.shape : p.info.torchShape) +
        lists[i]![0]
      )
    })
    expect(actual).toEqual(lists.map(([name, shape]) => shape + name))
  })

  test('is recognised', () => {
    expect(detectNaming(new Set(lists.map(([name]) => name)))).toBe(naming)
  })
})

test('a tensor is not used twice, in any model and naming', () => {
  for (const name of listModels()) {
    const config = getModelConfig(name)
    for (const naming of ['timm', 'torchvision', 'nvidia-pytorch'] as const) {
      const names = tensorNames(config, naming)
      expect(new Set(names).size).toBe(modelParams(config).length)
      expect(names.length).toBe(modelParams(config).length)
    }
  }
})

test('prefixes and older forms', () => {
  expect(canonicalName('module.layer1.block0.depsep.conv.weight')).toBe('layers.0.block0.depsep.conv.weight')
  expect(canonicalName('layer7.block0.proj.bn.bias')).toBe('layers.6.block0.proj.bn.bias')
  expect(canonicalName('layers.1.block0.expand.conv.weight')).toBe('layers.1.block0.expand.conv.weight')
  expect(canonicalName('module.blocks.0.0.bn1.weight')).toBe('blocks.0.0.bn1.weight')
})

test('what carries no weights', () => {
  expect(isIgnored('layers.0.block0.se.mul_a_quantizer._amax')).toBe(true)
  expect(isIgnored('bn1.num_batches_tracked')).toBe(true)
  expect(isIgnored('bn1.running_mean')).toBe(false)
})
