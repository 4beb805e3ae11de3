/**
 * `halfWeightGradients`: a choice of the training plan, on a driver and a cuDNN without a GPU. What rounding does to a gradient is
 * checked against float64 in native/tests/cuda_cudnn_test.cc.
 */
import { afterAll, expect, it } from 'vitest'
import { createModel, Trainer, type TrainerOptions } from '../../ts/index.js'
import { initParams } from '../../ts/runtime/init.js'
import { Session, type SessionPrecision } from '../../ts/runtime/session.js'
import { BLOCK, smallConfig } from '../helpers/small_config.js'
import { describeWith, fakeLibraries } from '../helpers/stand_in.js'

const LIBRARIES = fakeLibraries('libcudnn.so.9')
// Read when the backend is used first.
process.env['EFFNET_LIB_DIR'] = LIBRARIES.folder

const block = { ...BLOCK, expand: 2 }
const config = smallConfig('efficientnetv2_s', [{ ...block, op: 'fused', se: false }, block], { imageSize: 32 })
const off = { labelSmoothing: 0.1, dropRate: 0, dropPathRate: 0, clip: false, ema: false }

describeWith(LIBRARIES, '16-bit gradients of weights', () => {
  const sessions: Session[] = []
  afterAll(() => {
    for (const session of sessions) session.close()
  })

  /** The gradient kernels of a plan, its hash, and after a step the gradients of the only 3x3 convolution between blocks. */
  async function training(precision: SessionPrecision, halfWeightGradients?: boolean) {
    const session = await Session.create({ config, precision, device: 'cuda', deterministic: true })
    sessions.push(session)
    await initParams(config, 1, (param, values) => session.write(param.name, values))
    const plan = await session.trainPlan({
      ...off,
      optimizer: { name: 'sgd' },
      batchSize: 2,
      imageSize: 16,
      ...(halfWeightGradients !== undefined && { halfWeightGradients }),
    })
    const rows = plan.dump().filter(({ op }) => op === 'conv2d_bwd_weights')
    await plan.step(
      plan.packInput(
        new Uint8Array(2 * 16 * 16 * 3).map((_, i) => i * 37),
        [0, 1],
      ),
      { lr: 0.01 },
    )
    const name = rows.find((row) => row.name !== 'conv_stem.bwd_weights')!.name
    const bytes = plan.readTensor(`grad:${name.replace(/\.bwd_weights$/, '.weight')}`)
    const gradient = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)
    return { hash: plan.hash, kernels: Object.fromEntries(rows.map((row) => [row.name, row.kernel])), gradient, name }
  }

  it('are off; where they are on the hash, the dump and the numbers are others', async () => {
    const without = await training('bf16-mixed')
    const same = await training('bf16-mixed', false)
    const half = await training('bf16-mixed', true)
    expect(same).toEqual(without)
    expect(half.hash).not.toBe(without.hash)
    const { name } = without
    expect(without.kernels[name]).toMatch(/^conv2d_bwd_weights_mma_\w+_bf16:cuda$/)
    expect(half.kernels[name]).toBe('conv2d_bwd_weights_bf16_half:cudnn')
    // The stem's three channels are none of cuDNN's.
    expect(half.kernels['conv_stem.bwd_weights']).toBe(without.kernels['conv_stem.bwd_weights'])
    // The lower half of a float is 0 where it is a bf16.
    const wide = ({ gradient }: typeof half): number => gradient.filter((bits) => (bits & 0xffff) !== 0).length
    expect(half.gradient.length).toBe(16 * 3 * 3 * 8)
    expect(wide(half)).toBe(0)
    expect(wide(without)).toBeGreaterThan(half.gradient.length / 2)
    expect(half.gradient.filter((bits) => bits !== 0).length).toBeGreaterThan(half.gradient.length / 2)
  }, 120_000)

  it.each(['fp32', 'tf32'] as const)('are refused with %s', async (precision) => {
    await expect(training(precision, true)).rejects.toMatchObject({
      code: 'EFF_CONFIG_VALUE',
      message: `halfWeightGradients is for bf16-mixed and fp16-mixed; the model was made with ${precision}`,
      hint: "createModel(name, { precision: 'bf16-mixed' })",
    })
  })

  it('are refused for a model that has no such convolution', async () => {
    const model = await createModel('efficientnet_b0', { numClasses: 2, device: 'cuda', precision: 'bf16-mixed' })
    const off = { labelSmoothing: 0, dropRate: 0, dropPathRate: 0, clip: false, ema: false }
    const options = { ...off, batchSize: 2, imageSize: 32, optimizer: { name: 'sgd' as const }, halfWeightGradients: true }
    try {
      await expect(model.session.trainPlan(options)).rejects.toMatchObject({
        code: 'EFF_CONFIG_VALUE',
        message: 'halfWeightGradients: efficientnet_b0 has no gradient that it is for',
      })
    } finally {
      await model.close()
    }
  }, 60_000)

  it('are an option of the Trainer, refused on a CPU', async () => {
    const model = await createModel('efficientnet_b0', { numClasses: 2 })
    const trainer = (options: Partial<TrainerOptions>) => new Trainer({ model, ...options })
    try {
      expect(() => trainer({ halfWeightGradients: true })).toThrow('halfWeightGradients is for GPUs: on a CPU')
      expect(() => trainer({ halfWeightGradients: 1 as never })).toThrow('halfWeightGradients = 1')
      expect(trainer({}).options.halfWeightGradients).toBe(false)
    } finally {
      await model.close()
    }
  }, 60_000)
})
