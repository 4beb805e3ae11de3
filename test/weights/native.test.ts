/** Tensor files through the native reader and writer, against bytes made and read here. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, afterEach, describe, expect, test } from 'vitest'
import { ARENA, binding } from '../../ts/binding.js'
import { elements } from '../../ts/graph/types.js'
import { getModelConfig, type ModelConfig, modelParams } from '../../ts/nn/index.js'
import { Session } from '../../ts/runtime/session.js'
import { layoutSafetensors, matchWeights, modelFile, type Naming, openSafetensors, tensorNames } from '../../ts/weights/index.js'
import { goldenWeights, toTorch } from '../helpers/golden.js'
import { half } from '../helpers/tensors.js'

const data = process.env['EFFNET_TEST_DATA']
const folder = mkdtempSync(path.join(tmpdir(), 'effnet-weights-'))
afterAll(() => rmSync(folder, { recursive: true }))
let session: Session | undefined
afterEach(() => session?.close())

/** The 16-bit words of values, cut rather than rounded: what a file holds is exact either way. */
function encode(dtype: 'F32' | 'F16' | 'BF16' | 'F64', values: Float64Array): Buffer {
  if (dtype === 'F64') return Buffer.from(values.slice().buffer)
  const words = Buffer.from(Float32Array.from(values).buffer)
  if (dtype === 'F32') return words
  const out = Buffer.alloc(values.length * 2)
  values.forEach((v, i) => {
    const bits = words.readUInt32LE(4 * i)
    if (dtype === 'BF16') out.writeUInt16LE(bits >>> 16, 2 * i)
    else {
      // Fill values lie well inside fp16's normal range, or are cut to a subnormal.
      const magnitude = Math.abs(v)
      const fraction = magnitude < 2 ** -14 ? Math.floor(magnitude * 2 ** 24) : ((bits & 0x7fffffff) >>> 13) - (112 << 10)
      out.writeUInt16LE(((bits >>> 16) & 0x8000) | fraction, 2 * i)
    }
  })
  return out
}

function decode(dtype: 'F32' | 'F16' | 'BF16' | 'F64', bytes: Buffer): Float32Array {
  const float = new DataView(new ArrayBuffer(4))
  const width = { F32: 4, F16: 2, BF16: 2, F64: 8 }[dtype]
  return Float32Array.from({ length: bytes.length / width }, (_, i) => {
    if (dtype === 'F32') return bytes.readFloatLE(4 * i)
    if (dtype === 'F64') return bytes.readDoubleLE(8 * i)
    if (dtype === 'F16') return half(bytes.readUInt16LE(2 * i))
    float.setUint32(0, bytes.readUInt16LE(2 * i) * 65536)
    return float.getFloat32(0)
  })
}

/** Writes a model's hashed weights in torch's layout under one library's names; gives what each tensor reads as. */
function writeFile(config: ModelConfig, naming: Naming, dtypes: readonly ('F32' | 'F16' | 'BF16' | 'F64')[]) {
  const names = tensorNames(config, naming)
  const params = modelParams(config)
  const golden = goldenWeights(config)
  const torch = new Map<string, Float64Array>()
  const layout = layoutSafetensors(
    params.map((p, i) => {
      torch.set(names[i]!, toTorch(p, golden.get(p.name)!))
      const matrix = naming === 'nvidia-pytorch' && p.info.kind === 'se_weights'
      return { name: names[i]!, dtype: dtypes[i % dtypes.length]!, shape: matrix ? p.shape : p.info.torchShape }
    }),
  )
  const bytes = Buffer.alloc(layout.dataBytes)
  const reads = new Map<string, Float32Array>()
  for (const t of layout.tensors) {
    const dtype = t.dtype as 'F32' | 'F16' | 'BF16' | 'F64'
    const encoded = encode(dtype, torch.get(t.name)!)
    bytes.set(encoded, t.begin)
    reads.set(params[names.indexOf(t.name)]!.name, decode(dtype, encoded))
  }
  const file = path.join(folder, `${config.name}-${naming}.safetensors`)
  writeFileSync(file, Buffer.concat([layout.header, bytes]))
  return { file, reads }
}

/** Every kind of layer in a fraction of the size. */
const small = (config: ModelConfig): ModelConfig => ({
  ...config,
  stages: config.stages.slice(0, 4).map((stage) => ({ ...stage, repeats: Math.min(stage.repeats, 2) })),
  head: 96,
  numClasses: 7,
})

const offsetOf = (s: Session) => (name: string) => s.layout.offsets.get(name)!

describe('loading', () => {
  test.each<[string, Naming, readonly ('F32' | 'F16' | 'BF16' | 'F64')[]]>([
    ['efficientnet_b0', 'timm', ['F32']],
    ['efficientnet_b0', 'torchvision', ['BF16', 'F16', 'F64', 'F32', 'F16', 'BF16', 'F64']],
    ['efficientnet_widese_b0', 'nvidia-pytorch', ['F16']],
    ['efficientnetv2_s', 'torchvision', ['BF16']],
  ])('%s under the names of %s as %s', async (name, naming, dtypes) => {
    const config = small(getModelConfig(name))
    const { file, reads } = writeFile(config, naming, dtypes)
    session = await Session.create({ config, precision: 'fp32', threads: 1 })
    const header = await openSafetensors(file)
    const { transfers } = matchWeights(header, config, { offsetOf: offsetOf(session) })
    await binding().loadTensors(session.memory, file, header.dataStart, transfers)
    for (const p of modelParams(config)) {
      const stored = Float64Array.from(session.read(p.name))
      expect(
        Buffer.from(Float32Array.from(toTorch(p, stored)).buffer).equals(Buffer.from(reads.get(p.name)!.buffer)),
        p.name,
      ).toBe(true)
    }
  })

  test.skipIf(!data)('16-bit files of other writers (EFFNET_TEST_DATA)', async () => {
    interface Expected {
      subset: Record<string, { dtype: string; first: number[]; sum: number }>
    }
    const { subset } = JSON.parse(readFileSync(path.join(data!, 'foreign-formats/expected.json'), 'utf8')) as Expected
    for (const [name, step] of [
      ['subset-f16', 2 ** -11],
      ['subset-bf16', 2 ** -8],
    ] as const) {
      const header = await openSafetensors(path.join(data!, 'foreign-formats', `${name}.safetensors`))
      for (const t of header.tensors.values()) {
        if (t.dtype !== 'F16' && t.dtype !== 'BF16') continue
        const count = elements(t.shape)
        const memory = binding().createMemory([4 * count])
        const place = { arena: 0, offset: 0, fileOffset: t.begin, dtype: t.dtype, permute: 'none', shape: [count] } as const
        await binding().loadTensors(memory, header.path, header.dataStart, [place])
        const values = new Float32Array(count)
        binding().readArena(memory, 0, 0, new Uint8Array(values.buffer))
        binding().closeMemory(memory)
        subset[t.name]!.first.forEach((v, i) => {
          expect(Math.abs(values[i]! - v)).toBeLessThanOrEqual(Math.max(Math.abs(v) * step, 2 ** -25))
        })
        const scale = values.reduce((s, v) => s + Math.abs(v), 0)
        expect(Math.abs(values.reduce((s, v) => s + v, 0) - subset[t.name]!.sum)).toBeLessThanOrEqual(scale * step + 1e-6)
      }
    }
  })
})

describe('saving', () => {
  test('gives the bytes that are expected, twice, and with their hash', async () => {
    const config = small(getModelConfig('efficientnet_b0'))
    session = await Session.create({ config, precision: 'fp32', threads: 2 })
    const golden = goldenWeights(config)
    for (const [name, values] of golden) session.write(name, Float32Array.from(values))
    const specs = ['a', 'b'].map((n) => modelFile(path.join(folder, n), config, offsetOf(session!)))
    const written = await binding().saveTensors(session.memory, specs)
    const [a, b] = specs.map((s) => readFileSync(s.path))
    expect(a!.equals(b!)).toBe(true)
    expect(written[0]!.sha256).toBe(written[1]!.sha256)
    expect(written.map((w) => w.bytes)).toEqual([a!.length, a!.length])

    const header = await openSafetensors(specs[0]!.path)
    for (const p of modelParams(config)) {
      const t = header.tensors.get(p.name)!
      expect(t.shape).toEqual(p.info.kind === 'linear_weights' ? p.shape : p.info.torchShape)
      const expected = encode('F32', toTorch(p, golden.get(p.name)!))
      expect(a!.subarray(header.dataStart + t.begin, header.dataStart + t.end).equals(expected), p.name).toBe(true)
    }
  })

  test('the moving average is another arena', async () => {
    const config = { ...small(getModelConfig('efficientnet_lite0')), numClasses: 3 }
    session = await Session.create({ config, precision: 'fp32', threads: 1 })
    for (const [name, values] of goldenWeights(config)) session.write(name, Float32Array.from(values))
    await session.resetEma()
    session.write('classifier.bias', Float32Array.of(7, 8, 9))
    const at = (n: string): string => path.join(folder, n)
    await binding().saveTensors(session.memory, [
      modelFile(at('weights'), config, offsetOf(session)),
      modelFile(at('ema'), config, offsetOf(session), { arena: ARENA.ema }),
    ])
    const bias = async (file: string): Promise<Float32Array> => {
      const header = await openSafetensors(file)
      const t = header.tensors.get('classifier.bias')!
      return decode('F32', readFileSync(file).subarray(header.dataStart + t.begin, header.dataStart + t.end))
    }
    expect(await bias(at('weights'))).toEqual(Float32Array.of(7, 8, 9))
    expect(await bias(at('ema'))).toEqual(Float32Array.from(goldenWeights(config).get('classifier.bias')!))
  })
})
