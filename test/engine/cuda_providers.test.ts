/**
 * The layers of the models by NVIDIA's libraries, as far as those do them, beside the float64 interpreter: on libraries and a driver
 * without a GPU (native/cuda/fake), with the launches of ours around their calls.
 */
import { afterEach, expect, it, vi } from 'vitest'
import { checkLayers } from '../helpers/layer_check.js'
import { describeWith, fakeLibraries } from '../helpers/stand_in.js'

// Read when the backend is used first.
process.env['EFFNET_LIB_DIR'] = fakeLibraries().folder

/** What cuBLASLt does of a training step, and cuDNN. */
const PRODUCTS = ['conv2d_bwd', 'linear', 'linear_bwd_data', 'linear_bwd_weights']
const CONVOLUTIONS = ['conv2d_bwd', 'conv2d_bwd_data', 'conv2d_bwd_weights', 'conv2d_stats']

afterEach(() => vi.unstubAllEnvs())

const PROVIDERS = [
  ['cublaslt', 'libcublasLt.so.13', PRODUCTS],
  ['cudnn', 'libcudnn.so.9', CONVOLUTIONS],
] as const

for (const [provider, library, ops] of PROVIDERS)
  describeWith(fakeLibraries(library), `layers by ${provider}`, () => {
    it.each([
      ['efficientnet_b0', 'f32'],
      ['efficientnetv2_s', 'bf16'],
    ] as const)('%s %s: training', { timeout: 180_000 }, async (model, precision) => {
      vi.stubEnv('EFFNET_CUDA_PROVIDER', provider)
      const only = (op: string): boolean => /^(conv2d|linear)/.test(op)
      const { kernels, wrong } = await checkLayers({ model, precision, imageSize: 32, batchSize: 2, device: 'cuda', only })
      expect(wrong).toEqual([])
      const by = kernels
        .filter((kernel) => kernel.endsWith(`:${provider}`))
        .map((kernel) => kernel.split(/_(?:fma|mma|f32|bf16)/)[0]!)
      // B0's only larger convolution is of three channels.
      const there = ops.filter((op) => model !== 'efficientnet_b0' || !/^conv2d_bwd_/.test(op))
      expect([...new Set(by)].sort()).toEqual([...there].sort())
      expect(by.filter((op) => op === 'conv2d_bwd').length).toBeGreaterThan(20)
    })
  })
