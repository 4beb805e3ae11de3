import { afterEach, describe, expect, it } from 'vitest'
import { ARENA, binding } from '../../ts/binding.js'
import type { EffnetError } from '../../ts/errors.js'
import { getModelConfig, modelParams } from '../../ts/nn/index.js'
import { emit } from '../../ts/passes/emit.js'
import { activationBytes, planMemory } from '../../ts/passes/plan_memory.js'
import { evalProgram, OUTPUTS } from '../../ts/runtime/programs.js'
import { packScalars } from '../../ts/runtime/scalars.js'
import type { EvalResult, Session } from '../../ts/runtime/session.js'
import { weightsLayout } from '../../ts/runtime/weights_layout.js'
import { goldenSession, hashLabels, hashPixels } from './harness.js'

const SIZE = 48
const CLASSES = 13
const config = (name: string) => getModelConfig(name, { numClasses: CLASSES })
const b0 = config('efficientnet_b0')
const bf16 = binding().cpuInfo().avx512Bf16
const imageBytes = SIZE * SIZE * 3

const open: Session[] = []
const session = async (...args: Parameters<typeof goldenSession>): Promise<Session> => {
  const s = await goldenSession(...args)
  open.push(s)
  return s
}
afterEach(() => {
  for (const s of open.splice(0)) s.close()
})

async function evaluate(s: Session, pixels: Uint8Array, labels?: Int32Array): Promise<EvalResult> {
  const plan = await s.evalPlan({ batchSize: pixels.length / imageBytes, imageSize: SIZE })
  const result = await plan.run(plan.packInput(pixels, labels))
  plan.close()
  return result
}

/** The whole graph op by op over the batch, on two threads: what stands in the output arena. */
async function plainOutput(s: Session, batch: number, input: Uint8Array, dtype: 'f32' | 'bf16'): Promise<Uint8Array> {
  const { graph } = evalProgram(s.config, {
    batchSize: batch,
    imageSize: SIZE,
    dtype,
    target: { device: 'cpu', isa: binding().cpuInfo().isa },
  })
  const plan = planMemory(graph, { weightOffsets: s.layout.offsets, weightBytes: s.layout.bytes })
  const native = binding()
  await native.ensureArena(s.memory, ARENA.activations, plan.arenaBytes[ARENA.activations]!)
  const pool = native.createPool(2)
  const executable = await native.bind(pool, s.memory, emit(graph, plan).bytes)
  const output = await native.step(executable, { bytes: input }, packScalars({}))
  native.closeExecutable(executable)
  native.closePool(pool)
  return output
}

describe('image by image', () => {
  it.each([
    ['efficientnet_b0', 'fp32'],
    ['tf_efficientnetv2_b0', 'fp32'],
    ['tf_efficientnet_lite0', 'fp32'],
    ...(bf16 ? [['efficientnet_b0', 'bf16-mixed'] as const] : []),
  ] as const)('%s in %s: the bits of one image alone, for 1, 2 and 3 threads and any batch', async (name, precision) => {
    const pixels = hashPixels(3, 8 * imageBytes)
    const alone: Float32Array[] = []
    for (const threads of [1, 2, 3]) {
      const s = await session(config(name), precision, threads)
      const one = await s.evalPlan({ batchSize: 1, imageSize: SIZE })
      for (let i = 0; i < 8; i++) {
        const { features } = await one.run(one.packInput(pixels.slice(i * imageBytes, (i + 1) * imageBytes)))
        if (threads === 1) alone.push(features)
        else expect(features).toEqual(alone[i])
      }
      for (const batch of [2, 3, 5, 8]) {
        const { features } = await evaluate(s, pixels.slice(0, batch * imageBytes))
        const width = features.length / batch
        for (let i = 0; i < batch; i++) {
          expect(features.slice(i * width, (i + 1) * width), `image ${i} of ${batch}, ${threads} threads`).toEqual(alone[i])
        }
      }
      s.close()
    }
  })

  it('logits, loss and ranks are those of the plan that runs the batch op by op', async () => {
    const [pixels, labels] = [hashPixels(4, 5 * imageBytes), hashLabels(5, 5, CLASSES)]
    for (const [precision, dtype] of [['fp32', 'f32'] as const, ...(bf16 ? [['bf16-mixed', 'bf16'] as const] : [])]) {
      const s = await session(b0, precision)
      const plan = await s.evalPlan({ batchSize: 5, imageSize: SIZE })
      const input = plan.packInput(pixels, labels)
      const result = await plan.run(input)
      const plain = await plainOutput(s, 5, input.bytes!, dtype)
      for (const [name, values] of [
        ['classifier', result.logits],
        [OUTPUTS.loss, Float32Array.of(result.loss)],
        [OUTPUTS.rank, result.ranks],
      ] as const) {
        const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
        const found = Buffer.from(plain).indexOf(bytes)
        expect(found, `${name} in ${precision}`).toBeGreaterThanOrEqual(0)
        expect(found % 64, name).toBe(0)
      }
    }
  })

  it('follows weights that a training step changed, in the same arena', async () => {
    const s = await session(b0)
    const evaluation = await s.evalPlan({ batchSize: 4, imageSize: SIZE })
    const input = evaluation.packInput(hashPixels(6, 4 * imageBytes), hashLabels(7, 4, CLASSES))
    const before = await evaluation.run(input)
    const training = await s.trainPlan({
      batchSize: 4,
      imageSize: SIZE,
      optimizer: { name: 'sgd' },
      labelSmoothing: 0,
      dropRate: 0,
      dropPathRate: 0,
      clip: false,
      ema: false,
    })
    await training.step(input, { lr: 0.1, momentum: 0.9, optimizer_step: 1 })
    const after = await evaluation.run(input)
    expect(after.logits).not.toEqual(before.logits)
    const fresh = await session(b0)
    for (const slot of s.slots) fresh.write(slot.name, s.read(slot.name))
    expect((await evaluate(fresh, hashPixels(6, 4 * imageBytes))).logits).toEqual(after.logits)
  })

  it('needs the memory of the images in work, shows in the dump, and profiles the time of a step', async () => {
    const s = await session(b0, 'fp32', 2)
    const sizes: number[] = []
    for (const batchSize of [2, 32]) {
      const plan = await s.evalPlan({ batchSize, imageSize: SIZE })
      sizes.push(plan.arenaBytes[ARENA.activations]!)
      const rows = plan.dump()
      const stem = rows.find((r) => r.name === 'conv_stem')!
      expect(stem).toMatchObject({ runs: batchSize, shapes: expect.stringContaining('f32[1,24,24,32]') })
      expect(stem.place).toMatch(/^image\+/)
      expect(stem.flops).toBe(2 * batchSize * 24 * 24 * 32 * 27)
      expect(rows.find((r) => r.name === 'classifier')).toMatchObject({ runs: 1 })
    }
    expect(sizes[1]! - sizes[0]!).toBeLessThan(32 * 1024)
    const plan = await s.evalPlan({ batchSize: 9, imageSize: 96 })
    const input = plan.packInput(hashPixels(8, 9 * 96 * 96 * 3))
    await plan.run(input)
    plan.profile(true)
    const start = performance.now()
    for (let i = 0; i < 5; i++) await plan.run(input)
    const wall = (performance.now() - start) / 5
    const sum = plan.dump().reduce((total, row) => total + row.ms, 0)
    // Ops of a step on two threads: not the wall time twice, and nearly all of it.
    expect(sum).toBeLessThan(1.05 * wall)
    expect(
      plan
        .dump()
        .filter((r) => r.runs === 9)
        .every((r) => r.ms > 0),
    ).toBe(true)
  })

  it('ends at once when it is closed while images are in work, and gives every byte back', async () => {
    const before = binding().memoryUsage()
    for (const threads of [1, 2, 3]) {
      const s = await goldenSession(b0, 'fp32', threads)
      const plan = await s.evalPlan({ batchSize: 16, imageSize: 96 })
      const input = plan.packInput(hashPixels(1, 16 * 96 * 96 * 3))
      const codes = Array.from({ length: 40 }, () =>
        plan.run(input).then(
          () => 'ok',
          (e: EffnetError) => e.code,
        ),
      )
      await codes[0]
      s.close()
      for (const code of await Promise.all(codes)) expect(['ok', 'EFF_ABORTED']).toContain(code)
      expect(await codes.at(-1)).toBe('EFF_ABORTED')
    }
    expect({ ...binding().memoryUsage(), handles: 0 }).toEqual({ ...before, handles: 0 })
  })
})

describe('a region record that is wrong', () => {
  const BATCH = 4
  const TENSOR = 48
  const OP = 44
  const layout = weightsLayout(modelParams(b0))
  const { graph, region } = evalProgram(b0, { batchSize: BATCH, imageSize: 32, dtype: 'f32', target: { device: 'cpu' } })
  const memory = planMemory(graph, { weightOffsets: layout.offsets, weightBytes: layout.bytes }, region)
  const good = emit(graph, memory).bytes

  /** A copy of the plan with named places. */
  function edit() {
    const bytes = good.slice()
    const view = new DataView(bytes.buffer)
    const u32 = (at: number): number => view.getUint32(at, true)
    const [tensorCount, tensorsAt, opsAt, refsAt, namesAt] = [24, 40, 48, 56, 72].map(u32) as [
      number,
      number,
      number,
      number,
      number,
    ]
    const nameOf = (at: number): string =>
      new TextDecoder().decode(bytes.slice(namesAt + u32(at), namesAt + u32(at) + u32(at + 4)))
    const tensorIndex = (name: string): number => {
      for (let i = 0; i < tensorCount; i++) if (nameOf(tensorsAt + i * TENSOR) === name) return i
      throw new Error(`no tensor ${name}`)
    }
    const opAt = (name: string): number => {
      for (let i = 0; i < u32(28); i++) if (nameOf(opsAt + i * OP + 4) === name) return opsAt + i * OP
      throw new Error(`no op ${name}`)
    }
    const set = (at: number, v: number) => view.setUint32(at, v, true)
    return {
      bytes,
      view,
      set,
      region: { first: 88, ops: 92, images: 96, reserved: 100 },
      arenaBytes: (arena: number): number => 104 + 8 * arena,
      tensor: (name: string): number => tensorsAt + tensorIndex(name) * TENSOR,
      setOutput: (op: string, port: number, tensor: string) => set(refsAt + 4 * (u32(opAt(op) + 20) + port), tensorIndex(tensor)),
      setInput: (op: string, port: number, tensor: string) => set(refsAt + 4 * (u32(opAt(op) + 12) + port), tensorIndex(tensor)),
    }
  }
  const complaint = (change: (e: ReturnType<typeof edit>) => void): string => {
    const e = edit()
    change(e)
    try {
      binding().verifyPlan(e.bytes)
    } catch (error) {
      expect((error as EffnetError).code).toBe('EFF_PLAN_INVALID')
      return (error as Error).message
    }
    return 'accepted'
  }
  const last = [...region!.nodes].at(-1)!
  const features = last.outputs[0]!.name
  const inner = [...region!.inner][0]!.name

  it('is not in what the planner makes', () => {
    expect(complaint(() => {})).toBe('accepted')
  })

  it.each<[string, RegExp, (e: ReturnType<typeof edit>) => void]>([
    ['past the last op', /a region of/, (e) => e.set(e.region.first, e.view.getUint32(28, true) - 1)],
    ['with a count that wraps', /a region of/, (e) => e.set(e.region.ops, 0xffffffff)],
    ['of no images', /a region of/, (e) => e.set(e.region.images, 0)],
    ['of images, but no ops', /a region of/, (e) => e.set(e.region.ops, 0)],
    ['with a reserved field in use', /a region of/, (e) => e.set(e.region.reserved, 1)],
    [
      'missing, where tensors belong to it',
      /there is none/,
      (e) => [e.region.first, e.region.ops, e.region.images].forEach((at) => void e.set(at, 0)),
    ],
    [
      'that begins among prepare ops',
      /cannot run image by image/,
      (e) => e.set(e.region.first, e.view.getUint32(e.region.first, true) - 1),
    ],
    ['that begins too late', /not of the region/, (e) => e.set(e.region.first, e.view.getUint32(e.region.first, true) + 1)],
    ['that ends too early', /not of the region/, (e) => e.set(e.region.ops, region!.nodes.size - 1)],
    ['with an op of the whole batch', /writes what the images share/, (e) => e.set(e.region.ops, region!.nodes.size + 1)],
    [
      'with the loss',
      /cannot run image by image|writes what the images share/,
      (e) => e.set(e.region.ops, region!.nodes.size + 2),
    ],
    ['of more images than a slice has', /lie outside the arena/, (e) => e.set(e.region.images, BATCH + 200)],
    ['with images without end', /lie outside the arena/, (e) => e.set(e.region.images, 0xffffffff)],
    ['with a slice that begins too late', /lie outside the arena/, (e) => e.set(e.tensor('images[image]') + 16, 128)],
    ['with a slice of a weight', /not of one image/, (e) => e.view.setUint8(e.tensor('classifier.bias') + 11, 1)],
    ['with a slice of several images', /is not of one image/, (e) => e.view.setUint8(e.tensor('images') + 11, 1)],
    ['with a slice of an image’s own arena', /not a batch/, (e) => e.view.setUint8(e.tensor(inner) + 11, 1)],
    [
      'that sees nothing of a batch',
      /nothing of a batch/,
      (e) => {
        // The same image for all, the features into memory that is each image's own.
        e.view.setUint8(e.tensor('images[image]') + 11, 0)
        const at = e.tensor(`${features}[image]`)
        e.view.setUint8(at + 9, ARENA.image)
        e.view.setUint8(at + 11, 0)
        e.view.setBigUint64(at + 16, BigInt(memory.arenaBytes[ARENA.image]! - 4 * last.outputs[0]!.shape[1]!), true)
      },
    ],
    ['with an unknown flag', /unknown flag/, (e) => e.view.setUint8(e.tensor(inner) + 11, 2)],
    ['whose op writes a whole batch', /wrong shape/, (e) => e.setOutput(last.name, 0, features)],
    ['whose op reads a whole batch', /shapes differ/, (e) => e.setInput([...region!.nodes][0]!.name, 0, 'images')],
    [
      'whose images all write to one place',
      /writes what the images share/,
      (e) => e.view.setUint8(e.tensor(`${features}[image]`) + 11, 0),
    ],
    ['with a slice read by an op outside', /single image|wrong shape/, (e) => e.setInput('classifier', 0, `${features}[image]`)],
    [
      'with a tensor outside its arena',
      /outside its arena/,
      (e) => e.view.setBigUint64(e.arenaBytes(ARENA.image), BigInt(memory.arenaBytes[ARENA.image]! - 64), true),
    ],
    [
      'with more arena than its tensors need',
      /larger than its tensors/,
      (e) => e.view.setBigUint64(e.arenaBytes(ARENA.image), BigInt(memory.arenaBytes[ARENA.image]! + 64), true),
    ],
    [
      'that writes a slice over bytes it reads as a whole',
      /overlaps/,
      (e) => {
        // A bias that all images read now lies among the features that they write.
        const bias = e.tensor('blocks.0.0.se.conv_reduce.bias')
        e.view.setUint8(bias + 9, ARENA.output)
        e.view.setBigUint64(bias + 16, e.view.getBigUint64(e.tensor(features) + 16, true), true)
      },
    ],
  ])('%s is refused', (_, why, change) => {
    expect(complaint(change)).toMatch(why)
  })

  it('needs its images in work beside the activations', async () => {
    const native = binding()
    const pool = native.createPool(2)
    const sizes = memory.arenaBytes.map((size, arena) => (arena < ARENA.activations ? size : 0))
    const arenas = native.createMemory(sizes)
    await native.ensureArena(arenas, ARENA.activations, activationBytes(memory, 2) - 64)
    await expect(native.bind(pool, arenas, good)).rejects.toMatchObject({ code: 'EFF_PLAN_INVALID' })
    await native.ensureArena(arenas, ARENA.activations, activationBytes(memory, 2))
    native.closeExecutable(await native.bind(pool, arenas, good))
    native.closeMemory(arenas)
    native.closePool(pool)
  })
})
