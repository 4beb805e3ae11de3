import path from 'node:path'
import { describe, expect, test } from 'vitest'
import { ARENA } from '../../ts/binding.js'
import { EffnetError } from '../../ts/errors.js'
import { elements } from '../../ts/graph/types.js'
import { getModelConfig, type ModelConfig, modelParams } from '../../ts/nn/index.js'
import {
  layoutSafetensors,
  matchWeights,
  modelFile,
  type Naming,
  openSafetensors,
  type SafetensorsDtype,
  type SafetensorsFile,
  tensorNames,
} from '../../ts/weights/index.js'
import { parseHeader } from '../../ts/weights/safetensors.js'

const data = process.env['EFFNET_TEST_DATA']

type Edit = (tensor: { name: string; dtype: SafetensorsDtype; shape: readonly number[] }) => Partial<typeof tensor> | null

/** The file of a model under one library's names; `edit` changes tensors, null drops one. */
function fileFor(
  config: ModelConfig,
  naming: Naming,
  edit: Edit = () => ({}),
  extra: Parameters<typeof layoutSafetensors>[0] = [],
): SafetensorsFile {
  const names = tensorNames(config, naming)
  const tensors = modelParams(config).flatMap((p, i) => {
    const matrix = naming === 'nvidia-pytorch' && p.info.kind === 'se_weights'
    const t = {
      name: names[i]!,
      dtype: 'F32' as const,
      shape: matrix || p.info.kind === 'linear_weights' ? p.shape : p.info.torchShape,
    }
    const change = edit(t)
    return change ? [{ ...t, ...change }] : []
  })
  const { header, dataBytes } = layoutSafetensors([...tensors, ...extra])
  return { path: '/weights/x.safetensors', ...parseHeader(header.subarray(8), header.length + dataBytes, 'x') }
}

function offsets(config: ModelConfig): (name: string) => number {
  const map = new Map<string, number>()
  let at = 0
  for (const p of modelParams(config)) {
    map.set(p.name, at)
    at += 4 * elements(p.shape)
  }
  return (name) => map.get(name)!
}

function refusal(file: SafetensorsFile, config: ModelConfig, replaceHead = false): EffnetError {
  try {
    matchWeights(file, config, { offsetOf: offsets(config), replaceHead })
  } catch (e) {
    if (e instanceof EffnetError) return e
    throw e
  }
  throw new Error('was accepted')
}

const b0 = getModelConfig('efficientnet_b0')

describe('matching', () => {
  test.each<[string, Naming]>([
    ['efficientnet_b0', 'timm'],
    ['tf_efficientnetv2_s', 'timm'],
    ['efficientnet_lite0', 'timm'],
    ['efficientnet_b0', 'torchvision'],
    ['efficientnetv2_m', 'torchvision'],
    ['efficientnet_b4', 'nvidia-pytorch'],
    ['efficientnet_widese_b0', 'nvidia-pytorch'],
  ])('%s under the names of %s', (name, naming) => {
    const config = getModelConfig(name)
    const file = fileFor(config, naming)
    const offsetOf = offsets(config)
    const match = matchWeights(file, config, { offsetOf })
    const params = modelParams(config)
    const names = tensorNames(config, naming)
    expect([match.naming, match.ignored, match.headReplaced]).toEqual([naming, [], undefined])
    expect(match.transfers.length).toBe(params.length)
    params.forEach((p, i) => {
      const t = match.transfers[i]!
      expect([t.arena, t.offset, t.dtype]).toEqual([ARENA.weights, offsetOf(p.name), 'F32'])
      expect(t.fileOffset).toBe(file.tensors.get(names[i]!)!.begin)
      expect(elements(t.shape)).toBe(elements(p.shape))
      if (t.permute !== 'none') expect([t.permute, t.shape]).toEqual([p.info.layout, p.info.torchShape])
      else expect(p.info.layout === 'vector' || p.info.layout === 'matrix' || p.info.torchShape[2] === 1).toBe(true)
    })
  })

  test('data-parallel prefix, the older layer names, counters and quantizers', () => {
    const config = getModelConfig('efficientnet_widese_b0')
    const rename: Edit = ({ name }) => ({
      name: `module.${name.replace(/^layers\.(\d+)/, (_, n: string) => `layer${Number(n) + 1}`)}`,
    })
    const extra = [
      { name: 'module.stem.bn.num_batches_tracked', dtype: 'I64', shape: [] },
      { name: 'module.layer1.block0.depsep.conv._input_quantizer._amax', dtype: 'F32', shape: [] },
    ] as const
    const match = matchWeights(fileFor(config, 'nvidia-pytorch', rename, extra), config, { offsetOf: offsets(config) })
    expect(match.transfers.length).toBe(311)
    expect(match.ignored.length).toBe(2)
  })

  test('16-bit and 64-bit files, each tensor by its own type', () => {
    const types = ['F16', 'BF16', 'F64'] as const
    let i = 0
    const file = fileFor(b0, 'timm', () => ({ dtype: types[i++ % 3]! }))
    const match = matchWeights(file, b0, { offsetOf: offsets(b0) })
    expect(match.transfers.slice(0, 3).map((t) => t.dtype)).toEqual(types)
  })
})

describe('heads', () => {
  const ten = getModelConfig('efficientnet_b0', { numClasses: 10 })

  test('another class count is replaced where that is asked for', () => {
    const match = matchWeights(fileFor(b0, 'torchvision'), ten, { offsetOf: offsets(ten), replaceHead: true })
    expect(match.headReplaced).toEqual({ from: 1000, to: 10 })
    expect(match.transfers.length).toBe(309)
  })

  test('the same class count is kept', () => {
    const match = matchWeights(fileFor(b0, 'timm'), b0, { offsetOf: offsets(b0), replaceHead: true })
    expect([match.headReplaced, match.transfers.length]).toEqual([undefined, 311])
  })

  test('else the mend is the class count', () => {
    const e = refusal(fileFor(ten, 'timm'), b0)
    expect([e.code, e.details['count'], e.details['fileClasses']]).toEqual(['EFF_WEIGHTS_SHAPE', 2, 10])
    expect(e.hint).toContain('--num-classes 10')
    expect(e.message).toContain('classifier.weight [10,1280] in the file, [1000,1280] in the model')
  })

  test.each<[string, Edit]>([
    ['a width that does not fit', ({ name }) => (name === 'classifier.weight' ? { shape: [10, 1000] } : {})],
    ['a bias of another size', ({ name }) => (name === 'classifier.bias' ? { shape: [11] } : {})],
    ['no bias', ({ name }) => (name === 'classifier.bias' ? null : {})],
  ])('%s is no head to replace', (_, edit) => {
    const e = refusal(fileFor(ten, 'timm', edit), b0, true)
    expect(e.code).toBe('EFF_WEIGHTS_SHAPE')
    expect(e.hint).not.toContain('--num-classes')
  })
})

describe('what does not fit', () => {
  test('the first five of many, and how many there are', () => {
    const e = refusal(fileFor(getModelConfig('efficientnet_b1'), 'timm'), b0)
    expect(e.code).toBe('EFF_WEIGHTS_SHAPE')
    expect(e.message.split('\n').filter((l) => l.startsWith('  ')).length).toBe(6)
    expect(e.message).toMatch(/and \d+ more$/)
    expect((e.details['mismatches'] as unknown[]).length).toBe(5)
    expect(e.hint).toContain('--model')
  })

  test('a model that the file names is the mend', () => {
    const file = {
      ...fileFor(getModelConfig('efficientnet_b1'), 'timm'),
      metadata: new Map([['architecture', 'efficientnet_b1']]),
    }
    expect(refusal(file, b0).hint).toContain('--model efficientnet_b1')
  })

  test.each<[string, Edit, string]>([
    ['missing', ({ name }) => (name === 'blocks.2.0.bn2.bias' ? null : {}), 'blocks.2.0.bn2.bias [144] is not in the file'],
    [
      'another shape',
      ({ name }) => (name === 'conv_head.weight' ? { shape: [320, 1280, 1, 1] } : {}),
      'conv_head.weight [320,1280,1,1] in the file',
    ],
    ['integers', ({ name }) => (name === 'bn1.bias' ? { dtype: 'I32' } : {}), 'bn1.bias is I32'],
  ])('%s', (_, edit, text) => {
    const e = refusal(fileFor(b0, 'timm', edit), b0)
    expect([e.code, e.details['count']]).toEqual(['EFF_WEIGHTS_SHAPE', 1])
    expect(e.message).toContain(text)
  })

  test('unexpected tensors', () => {
    const e = refusal(fileFor(b0, 'timm', undefined, [{ name: 'blocks.9.0.conv_dw.weight', dtype: 'F32', shape: [1] }]), b0)
    expect(e.message).toContain('blocks.9.0.conv_dw.weight [1] is not in the model')
  })

  test('two tensors that become one', () => {
    const e = refusal(fileFor(b0, 'timm', undefined, [{ name: 'module.bn1.bias', dtype: 'F32', shape: [32] }]), b0)
    expect(e.message).toContain('bn1.bias')
    expect(e.code).toBe('EFF_WEIGHTS_SHAPE')
  })

  test('no names of ours at all', () => {
    const { header } = layoutSafetensors([{ name: 'encoder.w', dtype: 'F32', shape: [0] }])
    const file = { path: 'y', ...parseHeader(header.subarray(8), header.length, 'y') }
    expect(refusal(file, b0).message).toContain('encoder.w')
  })
})

test.skipIf(!data)('the published weights fit (EFFNET_TEST_DATA)', async () => {
  for (const [name, file] of [
    ['tf_efficientnet_b0', 'tf_efficientnet_b0.tfhub-v1'],
    ['tf_efficientnetv2_b0', 'tf_efficientnetv2_b0.keras-1k'],
  ] as const) {
    const config = getModelConfig(name)
    const match = matchWeights(await openSafetensors(path.join(data!, 'weights', `${file}.safetensors`)), config, {
      offsetOf: offsets(config),
    })
    expect([match.naming, match.transfers.length]).toEqual(['timm', modelParams(config).length])
  }
})

describe('saving', () => {
  test('a file that loads again, by names alone', () => {
    const offsetOf = offsets(b0)
    const spec = modelFile('/tmp/model.safetensors', b0, offsetOf, { arena: ARENA.ema })
    const file = { path: 'z', ...parseHeader(spec.header.subarray(8), spec.header.length + spec.dataBytes, 'z') }
    expect(file.metadata.get('architecture')).toBe('efficientnet_b0')
    const match = matchWeights(file, b0, { offsetOf, arena: ARENA.ema })
    const byOffset = (a: { fileOffset: number }, b: { fileOffset: number }): number => a.fileOffset - b.fileOffset
    expect([...match.transfers].sort(byOffset)).toEqual(spec.tensors)
    expect(modelFile('/elsewhere', b0, offsetOf).header).toEqual(spec.header)
  })
})
