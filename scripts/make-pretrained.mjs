#!/usr/bin/env node
/**
 * Makes models/pretrained/<model>.safetensors from FP32 weights under timm's names: convolution, squeeze-and-excitation and
 * classifier matrices as fp16 (to nearest even), everything else (biases, batch normalisation) as it is; batch counters go.
 *
 *     npx tsx scripts/make-pretrained.mjs tf_efficientnet_b0.tfhub-v1.safetensors
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { getModelConfig, modelParams } from '../ts/nn/index.ts'
import { layoutSafetensors, openSafetensors } from '../ts/weights/index.ts'

const word = new Uint32Array(1)
const float = new Float32Array(word.buffer)

/** The nearest fp16 of an FP32 value, ties to even. */
function halfBits(x) {
  float[0] = x
  const sign = (word[0] >>> 16) & 0x8000
  const magnitude = Math.abs(x)
  if (magnitude >= 65520 || Number.isNaN(x)) throw new Error(`${x} has no fp16`)
  // Below the smallest normal number fp16 counts in steps of 2^-24; above, 13 bits of mantissa are cut.
  if (magnitude < 2 ** -14) return sign | roundEven(magnitude * 2 ** 24)
  const bits = word[0] & 0x7fffffff
  const odd = (bits >>> 13) & 1
  return sign | (((bits + 0xfff + odd) >>> 13) - (112 << 10))
}

function roundEven(x) {
  const down = Math.floor(x)
  const rest = x - down
  return rest > 0.5 || (rest === 0.5 && down % 2 === 1) ? down + 1 : down
}

const source = process.argv[2]
if (!source) {
  console.error('usage: npx tsx scripts/make-pretrained.mjs FILE.safetensors')
  process.exit(64)
}
const file = await openSafetensors(source)
const model = file.metadata.get('architecture')
const config = getModelConfig(model, { numClasses: Number(file.metadata.get('num_classes')) })
const matrices = new Set(['conv', 'depthwise', 'se_weights', 'linear_weights'])
const layout = layoutSafetensors(
  modelParams(config).map((p) => ({ name: p.name, dtype: matrices.has(p.info.kind) ? 'F16' : 'F32', shape: p.info.torchShape })),
  { ...Object.fromEntries(file.metadata), precision: 'fp16 matrices, fp32 biases and batch normalisation' },
)

const bytes = readFileSync(source)
const data = Buffer.alloc(layout.dataBytes)
for (const { name, dtype, begin, end } of layout.tensors) {
  const from = file.tensors.get(name)
  const src = bytes.subarray(file.dataStart + from.begin, file.dataStart + from.end)
  if (from.dtype !== 'F32') throw new Error(`${name} is ${from.dtype}`)
  if (dtype === 'F32') data.set(src, begin)
  else for (let i = 0; begin + 2 * i < end; i++) data.writeUInt16LE(halfBits(src.readFloatLE(4 * i)), begin + 2 * i)
}
const folder = path.join(path.dirname(fileURLToPath(import.meta.url)), '../models/pretrained')
mkdirSync(folder, { recursive: true })
const out = path.join(folder, `${model}.safetensors`)
writeFileSync(out, Buffer.concat([layout.header, data]))
console.log(`${path.relative(process.cwd(), out)}: ${layout.header.length + data.length} bytes`)
