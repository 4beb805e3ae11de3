/**
 * How images were prepared for the published weights (timm 1.0.29, torchvision 0.28): sizes, crop, interpolation, constants.
 * Keys are model names, or `<model>.<tag>` for weight sets that differ from their model's default.
 */

export interface PreprocessingRow {
  /** Training resolution, where it differs from the architecture table. */
  readonly size?: number
  readonly evalSize?: number
  /** Crop side / resized short side at evaluation. */
  readonly cropPct?: number
  /** `squash` resizes the whole image to a square, with no regard to its aspect. */
  readonly cropMode?: 'center' | 'squash'
  readonly interpolation?: 'bicubic' | 'bilinear'
  /** `half`: mean = std = 0.5. */
  readonly norm?: 'imagenet' | 'half'
  readonly classes?: number
  /** Short side before the crop where no crop fraction gives it. */
  readonly evalResize?: number
}

export const IMAGENET_MEAN = [0.485, 0.456, 0.406] as const
export const IMAGENET_STD = [0.229, 0.224, 0.225] as const
export const HALF = [0.5, 0.5, 0.5] as const

const V1_CROP = { b0: 0.875, b1: 0.882, b2: 0.89, b3: 0.904, b4: 0.922, b5: 0.934, b6: 0.942, b7: 0.949, b8: 0.954 } as const
const IN21K = 21843

const table: Record<string, PreprocessingRow> = {
  efficientnet_l2: { cropPct: 0.961 },
  tf_efficientnet_l2: { cropPct: 0.96 },
  'tf_efficientnet_l2.ns_jft_in1k': {},
  'tf_efficientnet_l2.ns_jft_in1k_475': { size: 475, evalSize: 475, cropPct: 0.936 },

  'efficientnet_b0.ra_in1k': {},
  'efficientnet_b1.ft_in1k': { size: 224, evalSize: 256, cropPct: 1 },
  'efficientnet_b2.ra_in1k': { size: 256, evalSize: 288, cropPct: 1 },
  'efficientnet_b3.ra2_in1k': { size: 288, evalSize: 320, cropPct: 1 },
  'efficientnet_b4.ra2_in1k': { size: 320, evalSize: 384, cropPct: 1 },
  'efficientnet_b5.sw_in12k_ft_in1k': { size: 448, evalSize: 448, cropPct: 1, cropMode: 'squash' },
  'efficientnet_lite0.ra_in1k': {},

  efficientnet_lite0: { cropPct: 0.875 },
  efficientnet_lite1: { cropPct: 0.882 },
  efficientnet_lite2: { cropPct: 0.89 },
  efficientnet_lite3: { cropPct: 0.904 },
  efficientnet_lite4: { cropPct: 0.922 },
  tf_efficientnet_lite0: { cropPct: 0.875, norm: 'half' },
  tf_efficientnet_lite1: { cropPct: 0.882, norm: 'half' },
  tf_efficientnet_lite2: { cropPct: 0.89, norm: 'half' },
  tf_efficientnet_lite3: { size: 300, evalSize: 300, cropPct: 0.904, norm: 'half', interpolation: 'bilinear' },
  tf_efficientnet_lite4: { size: 380, evalSize: 380, cropPct: 0.92, norm: 'half', interpolation: 'bilinear' },

  efficientnetv2_b0: { cropPct: 0.875 },
  efficientnetv2_b1: { cropPct: 0.882 },
  efficientnetv2_b2: { cropPct: 0.89 },
  efficientnetv2_b3: { cropPct: 0.904 },
  tf_efficientnetv2_b0: { cropPct: 0.875 },
  tf_efficientnetv2_b1: { cropPct: 0.882 },
  tf_efficientnetv2_b2: { cropPct: 0.89 },
  tf_efficientnetv2_b3: { cropPct: 0.904 },

  efficientnetv2_s: { cropPct: 1 },
  efficientnetv2_m: { cropPct: 1 },
  efficientnetv2_l: { cropPct: 1 },
  efficientnetv2_xl: { cropPct: 1 },
  tf_efficientnetv2_s: { cropPct: 1, norm: 'half' },
  tf_efficientnetv2_m: { cropPct: 1, norm: 'half', cropMode: 'squash' },
  tf_efficientnetv2_l: { cropPct: 1, norm: 'half', cropMode: 'squash' },
  tf_efficientnetv2_xl: { cropPct: 1, norm: 'half', cropMode: 'squash' },
}
for (const [variant, cropPct] of Object.entries(V1_CROP)) {
  for (const prefix of ['', 'tf_']) {
    table[`${prefix}efficientnet_${variant}`] = { cropPct }
    if (Number(variant.slice(1)) < 8) table[`${prefix}efficientnet_widese_${variant}`] = { cropPct }
  }
  for (const tag of ['in1k', 'aa_in1k', 'ra_in1k', 'ns_jft_in1k']) table[`tf_efficientnet_${variant}.${tag}`] = {}
  table[`tf_efficientnet_${variant}.ap_in1k`] = { norm: 'half' }
}
for (const variant of ['b0', 'b1', 'b2', 'b3', 's', 'm', 'l', 'xl']) {
  table[`tf_efficientnetv2_${variant}.in1k`] = {}
  table[`tf_efficientnetv2_${variant}.in21k`] = { classes: IN21K }
  table[`tf_efficientnetv2_${variant}.in21k_ft_in1k`] = {}
}
for (const variant of ['lite0', 'lite1', 'lite2', 'lite3', 'lite4']) table[`tf_efficientnet_${variant}.in1k`] = {}

/** timm's table. A tag's row adds to its model's. */
export const TIMM_PREPROCESSING: Readonly<Record<string, PreprocessingRow>> = table

/** torchvision resizes to an explicit short side. B1 is the second weight set. */
export const TORCHVISION_PREPROCESSING: Readonly<Record<string, PreprocessingRow>> = {
  efficientnet_b0: { size: 224, evalSize: 224, evalResize: 256 },
  efficientnet_b1: { size: 240, evalSize: 240, evalResize: 255, interpolation: 'bilinear' },
  'efficientnet_b1.imagenet1k_v1': { evalResize: 256, interpolation: 'bicubic' },
  'efficientnet_b1.imagenet1k_v2': {},
  efficientnet_b2: { size: 288, evalSize: 288, evalResize: 288 },
  efficientnet_b3: { size: 300, evalSize: 300, evalResize: 320 },
  efficientnet_b4: { size: 380, evalSize: 380, evalResize: 384 },
  efficientnet_b5: { size: 456, evalSize: 456, evalResize: 456 },
  efficientnet_b6: { size: 528, evalSize: 528, evalResize: 528 },
  efficientnet_b7: { size: 600, evalSize: 600, evalResize: 600 },
  efficientnetv2_s: { size: 384, evalSize: 384, evalResize: 384, interpolation: 'bilinear' },
  efficientnetv2_m: { size: 480, evalSize: 480, evalResize: 480, interpolation: 'bilinear' },
  efficientnetv2_l: { size: 480, evalSize: 480, evalResize: 480, norm: 'half' },
}
