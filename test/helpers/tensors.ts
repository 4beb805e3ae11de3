/** Reads weights into JS for the float64 interpreter; the engine itself loads them natively. */
import { readFileSync } from 'node:fs'
import { type ModelConfig, modelParams } from '../../ts/nn/index.js'
import { canonicalName, openSafetensors, type TensorEntry } from '../../ts/weights/index.js'
import { detectNaming, tensorNames } from '../../ts/weights/names.js'
import { toStored } from './golden.js'

/** The value of an fp16 word, from the definition. */
export function half(bits: number): number {
  const exponent = (bits >> 10) & 31
  const fraction = bits & 1023
  const magnitude = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15)
  return bits & 0x8000 ? -magnitude : magnitude
}

function valuesOf(bytes: Buffer, t: TensorEntry): Float64Array {
  if (t.dtype === 'F32') return Float64Array.from({ length: bytes.length / 4 }, (_, i) => bytes.readFloatLE(4 * i))
  if (t.dtype === 'F16') return Float64Array.from({ length: bytes.length / 2 }, (_, i) => half(bytes.readUInt16LE(2 * i)))
  throw new Error(`${t.name} is ${t.dtype}`)
}

/** Parameters and buffers of a model by our names, in stored layout. */
export async function readWeights(file: string, config: ModelConfig): Promise<Map<string, Float64Array>> {
  const header = await openSafetensors(file)
  const entries = new Map([...header.tensors.values()].map((t) => [canonicalName(t.name), t]))
  const names = tensorNames(config, detectNaming(entries)!)
  const bytes = readFileSync(file)
  return new Map(
    modelParams(config).map((p, i) => {
      const t = entries.get(names[i]!)!
      return [p.name, toStored(p, valuesOf(bytes.subarray(header.dataStart + t.begin, header.dataStart + t.end), t))]
    }),
  )
}
