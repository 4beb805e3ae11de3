/**
 * The deterministic fill of the golden checks: weights and inputs from a hash of (tensor index, element index), so that numbers
 * computed elsewhere with the same fill can be compared without any file.
 */
import { elements } from '../../ts/graph/types.js'
import { type ModelConfig, modelParams, type ParamDef, pixelNorm } from '../../ts/nn/index.js'

/** Values in [-1, 1) of elements 0..count-1 of tensor `t`. */
export function hashFill(t: number, count: number): Float64Array {
  const out = new Float64Array(count)
  const base = (Math.imul(t, 0x9e3779b1) + 0xc2b2ae3d) | 0
  for (let j = 0; j < count; j++) {
    let x = (base + Math.imul(j, 0x85ebca77)) >>> 0
    x = Math.imul(x ^ (x >>> 16), 0x7feb352d)
    x = Math.imul(x ^ (x >>> 15), 0x846ca68b)
    x = (x ^ (x >>> 16)) >>> 0
    out[j] = (2 * x) / 4294967296 - 1
  }
  return out
}

/** From torch's layout (OIHW, C1HW, matrices, vectors) to the stored one. */
export function toStored(param: ParamDef, torch: Float64Array): Float64Array {
  const { layout, torchShape } = param.info
  if (layout !== 'ohwi' && layout !== 'hwc') return torch
  const [o, i, h, w] = torchShape as [number, number, number, number]
  const out = new Float64Array(torch.length)
  let at = 0
  for (let a = 0; a < o; a++) {
    for (let b = 0; b < i; b++) {
      for (let y = 0; y < h; y++) {
        for (let x = 0; x < w; x++) {
          const to = layout === 'ohwi' ? ((a * h + y) * w + x) * i + b : (y * w + x) * o + a
          out[to] = torch[at++]!
        }
      }
    }
  }
  return out
}

/** The inverse of `toStored`. */
export function toTorch(param: ParamDef, stored: Float64Array): Float64Array {
  const positions = toStored(
    param,
    Float64Array.from(stored, (_, i) => i),
  )
  const out = new Float64Array(stored.length)
  positions.forEach((from, to) => {
    out[from] = stored[to]!
  })
  return out
}

/** Values of all parameters and buffers by name, in stored layout. */
export function goldenWeights(config: ModelConfig): Map<string, Float64Array> {
  const values = new Map<string, Float64Array>()
  let t = 0
  for (const p of modelParams(config)) {
    const { kind, torchShape } = p.info
    const u = hashFill(t++, elements(torchShape))
    if (kind === 'bn_var') t++ // num_batches_tracked follows in the state_dict
    const gain = torchShape.length >= 2 ? 2 / Math.sqrt(elements(torchShape.slice(1))) : 0.1
    const fill =
      kind === 'bn_var' ? (v: number) => 1 + 0.25 * v : kind === 'bn_scale' ? (v: number) => 1 + 0.1 * v : (v: number) => gain * v
    values.set(p.name, toStored(p, u.map(fill)))
  }
  return values
}

/** What the network sees: [N, H, W, 3], hashed in NCHW order. */
export function goldenInput(batch: number, height: number, width: number): Float64Array {
  const nchw = hashFill(100000, batch * 3 * height * width)
  const out = new Float64Array(nchw.length)
  for (let n = 0; n < batch; n++) {
    for (let c = 0; c < 3; c++) {
      for (let p = 0; p < height * width; p++) out[(n * height * width + p) * 3 + c] = nchw[(n * 3 + c) * height * width + p]!
    }
  }
  return out
}

/** Pixel values (not integers) that `input_normalize` turns into `seen`. */
export function pixelsFor(config: ModelConfig, seen: Float64Array): Float64Array {
  const { mean, std } = pixelNorm(config.preprocessing)
  return seen.map((v, i) => v * std[i % 3]! + mean[i % 3]!)
}
