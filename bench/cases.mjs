/** What is measured: the work, and who can do it. `short` cases are the samples that CI runs. */
const b0 = { model: 'efficientnet_b0', imageSize: 224 }

export const CASES = [
  { id: 'train-b32-fp32', ...b0, mode: 'train', batchSize: 32, precision: 'fp32', steps: 4, peers: ['torch'] },
  { id: 'train-b32-bf16', ...b0, mode: 'train', batchSize: 32, precision: 'bf16-mixed', steps: 4, peers: ['torch'] },
  {
    id: 'train-b32-64px-fp32',
    ...b0,
    imageSize: 64,
    mode: 'train',
    batchSize: 32,
    precision: 'fp32',
    steps: 10,
    peers: ['torch'],
  },
  { id: 'infer-b1-fp32', ...b0, mode: 'infer', batchSize: 1, precision: 'fp32', steps: 40, peers: ['torch', 'ort'] },
  { id: 'infer-b32-fp32', ...b0, mode: 'infer', batchSize: 32, precision: 'fp32', steps: 5, peers: ['torch', 'ort'] },
  { id: 'infer-b32-bf16', ...b0, mode: 'infer', batchSize: 32, precision: 'bf16-mixed', steps: 5, peers: ['torch'] },
  { id: 'data-64px', mode: 'data', data: 'models/demo', imageSize: 64, batchSize: 32, peers: ['torch_data'] },
]

export const SHORT_CASES = [
  { id: 'train-b8-64px-fp32', ...b0, imageSize: 64, mode: 'train', batchSize: 8, precision: 'fp32', steps: 3, peers: [] },
  { id: 'infer-b1-fp32', ...b0, mode: 'infer', batchSize: 1, precision: 'fp32', steps: 5, peers: [] },
  { id: 'data-64px', mode: 'data', data: 'models/demo', imageSize: 64, batchSize: 32, peers: [] },
]
