/**
 * What is measured. A group's contenders live at the same time, idle but for the one whose turn it is, and share nothing but
 * the machine. A row of the table compares one of ours with the best of its peers; must and goal are ratios, for machines with
 * AMX and for those without.
 */
const effnet = (mode, o) => ({ who: 'effnet', label: `effnet ${o.precision ?? ''}`.trim(), mode, ...o })
const torch = (mode, o) => ({
  who: 'torch',
  label: `PyTorch ${o.compile ? 'compiled' : 'eager'} ${o.precision === 'fp32' ? 'fp32' : 'bf16'}`,
  mode,
  ...o,
})
const [fp32, bf16] = [{ precision: 'fp32' }, { precision: 'bf16-mixed' }]
const compile = { compile: true }

const trainB0 = { model: 'efficientnet_b0', imageSize: 224, batchSize: 32 }
const inferB0 = (batchSize) => ({ model: 'efficientnet_b0', imageSize: 224, batchSize })
const crops = { imageSize: 224, batchSize: 32, data: 'samples' }

/** Ours and PyTorch in fp32, eager and compiled. */
const trainGroup = (work) => ({
  effnet: effnet('train', { ...work, ...fp32 }),
  eager: torch('train', { ...work, ...fp32 }),
  compiled: torch('train', { ...work, ...fp32, ...compile }),
})

const inferGroup = (batchSize) => {
  const work = inferB0(batchSize)
  return {
    fp32: effnet('infer', { ...work, ...fp32 }),
    bf16: effnet('infer', { ...work, ...bf16 }),
    ort: { who: 'ort', label: 'ONNX Runtime (Python) fp32', mode: 'infer', ...work, ...fp32 },
    ort_node: { who: 'ort_node', label: 'onnxruntime-node fp32', mode: 'infer', ...work, ...fp32 },
  }
}

const sharp = (jobs, concurrency) => ({
  who: 'sharp',
  label: `sharp, ${jobs} images at a time, libvips threads ${concurrency}`,
  jobs,
  concurrency,
  ...crops,
})
const torchvision = (normalize) => ({
  who: 'torch_data',
  label: `torchvision + Pillow, normalised by ${normalize}`,
  normalize,
  ...crops,
})

export const GROUPS = {
  'train-b0': {
    effnet_bf16: effnet('train', { ...trainB0, ...bf16 }),
    ...trainGroup(trainB0),
    eager_bf16: torch('train', { ...trainB0, ...bf16 }),
    compiled_bf16: torch('train', { ...trainB0, ...bf16, ...compile }),
  },
  'train-b4': trainGroup({ model: 'efficientnet_b4', imageSize: 380, batchSize: 8 }),
  'train-v2s': trainGroup({ model: 'efficientnetv2_s', imageSize: 300, batchSize: 16 }),
  'infer-b1': inferGroup(1),
  'infer-b8': inferGroup(8),
  data: {
    effnet: effnet('data', crops),
    sharp_1: sharp(2, 1),
    sharp_2: sharp(2, 2),
    torchvision: torchvision('sample'),
    torchvision_batch: torchvision('batch'),
  },
}

const TORCH = ['eager', 'compiled']
const TORCH_ANY = [...TORCH, 'eager_bf16', 'compiled_bf16']
const ORT = ['ort', 'ort_node']
/** [must, goal] with AMX, [must, goal] without. */
const same = (must, goal) => ({ amx: [must, goal], other: [must, goal] })

export const ROWS = [
  {
    id: 'train-b0-fp32',
    work: 'train B0@224, batch 32, fp32',
    group: 'train-b0',
    ours: 'effnet',
    peers: TORCH,
    target: same(2.5, 4),
  },
  {
    id: 'train-b0-bf16',
    work: 'train B0@224, batch 32, bf16 (peer: any precision)',
    group: 'train-b0',
    ours: 'effnet_bf16',
    peers: TORCH_ANY,
    target: { amx: [4, 8], other: [4, 5.5] },
  },
  { id: 'train-b4', work: 'train B4@380, batch 8, fp32', group: 'train-b4', ours: 'effnet', peers: TORCH, target: same(2, 3) },
  {
    id: 'train-v2s',
    work: 'train V2-S@300, batch 16, fp32',
    group: 'train-v2s',
    ours: 'effnet',
    peers: TORCH,
    target: same(2, 3),
  },
  ...[1, 8].flatMap((batch) => [
    {
      id: `infer-b${batch}-fp32`,
      work: `infer B0@224, batch ${batch}, fp32`,
      group: `infer-b${batch}`,
      ours: 'fp32',
      peers: ORT,
      target: { amx: [1.3, 2], other: [1.2, 1.5] },
    },
    {
      id: `infer-b${batch}-bf16`,
      work: `infer B0@224, batch ${batch}, bf16 (peer: fp32)`,
      group: `infer-b${batch}`,
      ours: 'bf16',
      peers: ORT,
      target: { amx: [2.5, 4], other: [1.8, 2.3] },
    },
  ]),
  {
    id: 'data',
    work: 'JPEG decode, random resized crop 224, flip, normalise',
    group: 'data',
    ours: 'effnet',
    peers: ['sharp_1', 'sharp_2', 'torchvision', 'torchvision_batch'],
    target: same(1.5, 2.5),
  },
  {
    id: 'memory',
    work: 'peak memory, train B0@224, batch 32, fp32',
    group: 'train-b0',
    ours: 'effnet',
    peers: TORCH,
    measure: 'memory',
    target: same(0.6, 0.4),
  },
]

/** The samples that CI runs, ours alone. */
export const SHORT_GROUPS = {
  'train-b8-64px': { effnet: effnet('train', { model: 'efficientnet_b0', imageSize: 64, batchSize: 8, ...fp32 }) },
  'infer-b1': { effnet: effnet('infer', { ...inferB0(1), ...fp32 }) },
  data: { effnet: effnet('data', { ...crops, imageSize: 64, data: 'demo' }) },
}
