/** The floor of an op, and what `effnet bench --profile` makes of a plan. */
import { describe, expect, it } from 'vitest'
import { profileOf } from '../../ts/cli/profile.js'
import { FAKE_DRIVER, itWith } from '../helpers/stand_in.js'
import { effnet } from './helpers/capture.js'
import { spawnEffnet } from './helpers/spawn.js'

const peaks = { fp32Flops: 100e9, bf16Flops: 200e9, bytes: 10e9 }
const row = (op: string, shapes: string, ms: number, flops: number, bytes: number) => ({
  op,
  kernel: 'k',
  shapes,
  ms,
  flops,
  bytes,
})

describe('profileOf', () => {
  it('bounds an op by arithmetic or by memory, whichever takes longer', () => {
    const { ops } = profileOf(
      [
        row('conv2d', 'f32[1,8,8,8] f32[8,1,1,8] -> f32[1,8,8,8]', 5, 200e6, 1e6),
        row('conv2d_bwd_data', 'bf16[1,8,8,8] f32[8,1,1,8] -> bf16[1,8,8,8]', 4, 200e6, 1e6),
        // Stored as bf16, computed in FP32.
        row('depthwise_conv2d', 'bf16[1,8,8,8] f32[3,3,8] -> bf16[1,8,8,8]', 3, 200e6, 1e6),
        row('bn_act', 'bf16[1,8,8,8] -> bf16[1,8,8,8]', 2.5, 0, 20e6),
      ],
      peaks,
    )
    const floors = Object.fromEntries(ops.map((o) => [o.op, o.floorMs]))
    expect(floors['conv2d']).toBeCloseTo(2, 9)
    expect(floors['conv2d_bwd_data']).toBeCloseTo(1, 9)
    expect(floors['depthwise_conv2d']).toBeCloseTo(2, 9)
    expect(floors['bn_act']).toBeCloseTo(2, 9)
    expect(ops.map((o) => o.op)).toEqual(['conv2d', 'conv2d_bwd_data', 'depthwise_conv2d', 'bn_act'])
  })

  it('sums kinds of ops and puts the largest loss first', () => {
    const add = (ms: number) => row('add', 'f32[8] -> f32[8]', ms, 0, 10e6)
    const { kinds } = profileOf([add(1.5), row('linear', 'f32[8] -> f32[8]', 9, 800e6, 0), add(2)], peaks)
    expect(kinds).toEqual([
      { op: 'add', count: 2, ms: 3.5, floorMs: 2 },
      { op: 'linear', count: 1, ms: 9, floorMs: 8 },
    ])
  })

  it('sums what runs the same kernel, and takes what was not measured for no bound', () => {
    const add = (ms: number) => row('add', 'f32[8] -> f32[8]', ms, 1e9, 10e6)
    const { ops, kernels } = profileOf([add(1.5), { ...add(9), kernel: 'other' }, add(2)], {
      ...peaks,
      fp32Flops: 0,
      bf16Flops: 0,
    })
    expect(ops.map((o) => o.floorMs)).toEqual([1, 1, 1])
    expect(kernels).toEqual([
      { op: 'add', kernel: 'other', count: 1, ms: 9, bytes: 10e6, flops: 1e9, floorMs: 1 },
      { op: 'add', kernel: 'k', count: 2, ms: 3.5, bytes: 20e6, flops: 2e9, floorMs: 2 },
    ])
  })
})

describe('bench --profile', () => {
  const argv = 'bench --model efficientnet_b0 --batch-size 1 --image-size 32 --steps 1 --warmup 0 --threads 1 --profile'.split(
    ' ',
  )

  it('tells every op of the plan and the peaks it is measured against', async () => {
    const { code, json } = await effnet([...argv, '--json'])
    expect(code).toBe(0)
    const [report] = json() as [{ ops: Record<string, number>[]; kernels: unknown[]; peaks: Record<string, number> }]
    expect(report!.peaks['fp32_flops']).toBeGreaterThan(1e9)
    expect(report!.peaks['bytes_per_s']).toBeGreaterThan(1e8)
    expect(report!.ops.length).toBe(report!.kernels.length)
    for (const op of report!.ops) {
      expect(Object.keys(op)).toEqual('name op kernel shapes place life ms bytes flops floor_ms'.split(' '))
      expect(op['floor_ms']).toBeGreaterThan(0)
    }
  })

  it('shows kinds of ops, then the ops', async () => {
    const { stdout } = await effnet(argv)
    expect(stdout).toMatch(/^memory [\d ]+ MiB peak of the process, [\d ]+ MiB in arenas$/m)
    expect(stdout).toMatch(/^peak {3}fp32 \d+ GF\/s · .*memory [\d.]+ GB\/s, measured$/m)
    expect(stdout).toMatch(/^op +n +ms +% +floor ms +floor % +loss ms$/m)
    expect(stdout).toMatch(/^kernel +n +ms +% +MB +GB\/s +floor %$/m)
    expect(stdout).toMatch(/^ *ms +loss ms +floor % +GF\/s +GB\/s +op +kernel +shapes$/m)
    expect(stdout).toMatch(/conv2d_bias_act .*f32\[1,32,32,3\]/)
  })

  itWith(FAKE_DRIVER, 'takes the rate of copies in its memory for a GPU’s floor', 120_000, async () => {
    const { code, stdout } = await spawnEffnet([...argv, '--mode', 'train', '--device', 'cuda', '--json'], {
      EFFNET_LIB_DIR: FAKE_DRIVER.folder,
    }).done
    expect(code).toBe(0)
    const report = JSON.parse(stdout.trim().split('\n').at(-1)!) as {
      peaks: Record<string, number>
      arena_bytes: number
      gpu_bytes: Record<string, number>
      ops: { kernel: string; ms: number; bytes: number; floor_ms: number; life: string; place: string }[]
    }
    expect(report.peaks).toMatchObject({ fp32_flops: 0, bf16_flops: 0 })
    // The driver without a GPU says 0.5 ms of every stretch; a quarter of what is free of its 1 GB is copied.
    const copied = (report.peaks['bytes_per_s']! * 0.5e-3) / 2
    expect(copied).toBeGreaterThan(0.2 * 1e9)
    expect(copied).toBeLessThan(0.25 * 1e9)
    // The host's peak says nothing of the GPU's memory; this driver says that it has 1 GB of it, and this process alone uses it.
    const { model, in_use, total } = report.gpu_bytes
    expect(total).toBe(1e9)
    expect(model).toBeGreaterThan(report.arena_bytes)
    expect(in_use).toBeGreaterThanOrEqual(model!)
    expect(in_use).toBeLessThan(1.2 * model!)
    for (const op of report.ops) {
      expect(op.kernel).toMatch(/:cuda$/)
      expect(op.floor_ms).toBeCloseTo((1e3 * op.bytes) / report.peaks['bytes_per_s']!, 9)
    }
    expect(new Set(report.ops.map(({ life }) => life))).toContain('saved')
    expect(report.ops.filter(({ place }) => /^activations\+\d+$/.test(place)).length).toBeGreaterThan(50)
  })
})
