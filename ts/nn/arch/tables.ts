/**
 * Architecture tables of the published EfficientNets, as data. Sources: Tan & Le 2019 (v1, L2 from Xie et al. 2020), Tan & Le 2021
 * (V2), NVIDIA DeepLearningExamples (WideSE), google/automl and the TensorFlow TPU repository (Lite).
 */

export interface StageRow {
  /** `mbconv` expands with a 1x1 convolution and filters depthwise; `fused` does both in one dense convolution. */
  readonly op: 'mbconv' | 'fused'
  readonly kernel: 3 | 5
  /** Of the stage's first block; the others have stride 1. */
  readonly stride: 1 | 2
  /** Expansion of the block's input width; 1 = no expansion convolution. */
  readonly expand: 1 | 4 | 6
  readonly out: number
  readonly repeats: number
  readonly se: boolean
}

type Row = [op: StageRow['op'], kernel: 3 | 5, stride: 1 | 2, expand: 1 | 4 | 6, out: number, repeats: number, se: boolean]
const rows = (...table: Row[]): StageRow[] =>
  table.map(([op, kernel, stride, expand, out, repeats, se]) => ({ op, kernel, stride, expand, out, repeats, se }))

/** EfficientNet-B0; every v1 and Lite network is this table scaled. */
export const V1_BASE = rows(
  ['mbconv', 3, 1, 1, 16, 1, true],
  ['mbconv', 3, 2, 6, 24, 2, true],
  ['mbconv', 5, 2, 6, 40, 2, true],
  ['mbconv', 3, 2, 6, 80, 3, true],
  ['mbconv', 5, 1, 6, 112, 3, true],
  ['mbconv', 5, 2, 6, 192, 4, true],
  ['mbconv', 3, 1, 6, 320, 1, true],
)

/** EfficientNetV2-B0; B1-B3 are this table scaled. */
export const V2_BASE = rows(
  ['fused', 3, 1, 1, 16, 1, false],
  ['fused', 3, 2, 4, 32, 2, false],
  ['fused', 3, 2, 4, 48, 2, false],
  ['mbconv', 3, 2, 4, 96, 3, true],
  ['mbconv', 3, 1, 6, 112, 5, true],
  ['mbconv', 3, 2, 6, 192, 8, true],
)

export interface Scaling {
  readonly width: number
  readonly depth: number
  /** Training and evaluation resolution. */
  readonly size: number
  readonly evalSize: number
  readonly dropRate: number
}

const scaling = (width: number, depth: number, size: number, evalSize: number, dropRate: number): Scaling => ({
  width,
  depth,
  size,
  evalSize,
  dropRate,
})

export const V1_SCALING = {
  b0: scaling(1.0, 1.0, 224, 224, 0.2),
  b1: scaling(1.0, 1.1, 240, 240, 0.2),
  b2: scaling(1.1, 1.2, 260, 260, 0.3),
  b3: scaling(1.2, 1.4, 300, 300, 0.3),
  b4: scaling(1.4, 1.8, 380, 380, 0.4),
  b5: scaling(1.6, 2.2, 456, 456, 0.4),
  b6: scaling(1.8, 2.6, 528, 528, 0.5),
  b7: scaling(2.0, 3.1, 600, 600, 0.5),
  b8: scaling(2.2, 3.6, 672, 672, 0.5),
  l2: scaling(4.3, 5.3, 800, 800, 0.5),
} as const

/** NVIDIA's variants with a wider squeeze; the scaling is v1's. */
export const WIDESE_VARIANTS = ['b0', 'b1', 'b2', 'b3', 'b4', 'b5', 'b6', 'b7'] as const

/** Lite keeps the stem, the head and the depth of the first and the last stage unscaled. */
export const LITE_SCALING = {
  lite0: scaling(1.0, 1.0, 224, 224, 0.2),
  lite1: scaling(1.0, 1.1, 240, 240, 0.2),
  lite2: scaling(1.1, 1.2, 260, 260, 0.3),
  lite3: scaling(1.2, 1.4, 280, 280, 0.3),
  lite4: scaling(1.4, 1.8, 300, 300, 0.3),
} as const

export const V2_SCALING = {
  b0: scaling(1.0, 1.0, 192, 224, 0.2),
  b1: scaling(1.0, 1.1, 192, 240, 0.2),
  b2: scaling(1.1, 1.2, 208, 260, 0.3),
  b3: scaling(1.2, 1.4, 240, 300, 0.3),
} as const

export interface FixedTable {
  readonly stem: number
  readonly stages: readonly StageRow[]
  readonly size: number
  readonly evalSize: number
  readonly dropRate: number
}

/** Stages of the large V2 networks; `widths[i]` and `repeats[i]` belong to stage i + 1. */
const large = (widths: readonly number[], repeats: readonly number[]): StageRow[] => {
  const shape: Row[] = [
    ['fused', 3, 1, 1, 0, 0, false],
    ['fused', 3, 2, 4, 0, 0, false],
    ['fused', 3, 2, 4, 0, 0, false],
    ['mbconv', 3, 2, 4, 0, 0, true],
    ['mbconv', 3, 1, 6, 0, 0, true],
    ['mbconv', 3, 2, 6, 0, 0, true],
    ['mbconv', 3, 1, 6, 0, 0, true],
  ]
  return rows(...shape.slice(0, widths.length)).map((row, i) => ({ ...row, out: widths[i]!, repeats: repeats[i]! }))
}

export const V2_LARGE = {
  s: { stem: 24, stages: large([24, 48, 64, 128, 160, 256], [2, 4, 4, 6, 9, 15]), size: 300, evalSize: 384, dropRate: 0.2 },
  m: {
    stem: 24,
    stages: large([24, 48, 80, 160, 176, 304, 512], [3, 5, 5, 7, 14, 18, 5]),
    size: 384,
    evalSize: 480,
    dropRate: 0.3,
  },
  l: {
    stem: 32,
    stages: large([32, 64, 96, 192, 224, 384, 640], [4, 7, 7, 10, 19, 25, 7]),
    size: 384,
    evalSize: 480,
    dropRate: 0.4,
  },
  xl: {
    stem: 32,
    stages: large([32, 64, 96, 192, 256, 512, 640], [4, 8, 8, 16, 24, 32, 8]),
    size: 384,
    evalSize: 512,
    dropRate: 0.4,
  },
} as const satisfies Record<string, FixedTable>
