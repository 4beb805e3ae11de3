/**
 * What gpu-check runs on a GPU at the models' real sizes, on small images and the driver without one, there under four orders that must
 * give the same bits.
 *
 * CI has of each op in each type about 4 shapes, spread over the models and other ones for each type; EFFNET_CUDA_SHAPES=all
 * (`npm run cuda-checks -- layers`) has them all, on images of an even and of an odd size.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, expect, it, vi } from 'vitest'
import { packageRoot } from '../../ts/paths.js'
import { sample, shapeLines } from '../helpers/layer_shapes.js'
import { describeWith, FAKE_DRIVER, fakeLibraries } from '../helpers/stand_in.js'

const PROGRAM = path.join(packageRoot(), 'build/gpu_shapes_test')
const needed = { ...FAKE_DRIVER, missing: FAKE_DRIVER.missing ?? (existsSync(PROGRAM) ? undefined : PROGRAM) }

describeWith(needed, 'layer shapes beside references on the device', () => {
  let folder: string
  let small: string[]
  beforeAll(() => {
    small = shapeLines(32)
    folder = mkdtempSync(path.join(os.tmpdir(), 'effnet-shapes-'))
  })
  afterAll(() => rmSync(folder, { recursive: true, force: true }))
  const run = (lines: readonly string[], precision: string, from = 0, until = 0, orders = '') => {
    const file = path.join(folder, 'shapes.txt')
    writeFileSync(file, `${lines.join('\n')}\n`)
    const env = { ...process.env, EFFNET_LIB_DIR: FAKE_DRIVER.folder, EFFNET_CUDA_PROVIDER: 'own' }
    return spawnSync(PROGRAM, [file, precision, `${from}`, `${until}`, orders], { encoding: 'utf8', env })
  }
  const all = process.env['EFFNET_CUDA_SHAPES'] === 'all'

  it('has every convolution and normalisation of the models at its real size', () => {
    const lines = shapeLines()
    // B0 at 224, B4 at 380 and V2-S at 300 pixels; the largest tensors of D0.
    expect(lines).toContainEqual(
      expect.stringMatching(/^bf16 conv2d_bias_act .* src=a:bf16:2x224x224x3,.*dst=a:bf16:2x112x112x32/),
    )
    expect(lines).toContainEqual(expect.stringMatching(/^f16 depthwise_conv2d_bwd .*src=a:f16:2x190x190x48/))
    expect(lines).toContainEqual(expect.stringMatching(/^f32 conv2d_stats .*src=a:f32:2x150x150x24/))
    expect(lines).toContainEqual(expect.stringMatching(/^bf16 depthwise_conv2d_stats .*src=a:bf16:2x256x256x32/))
    expect(lines).toContainEqual(expect.stringMatching(/^bf16 conv2d .*src=a:bf16:2x16x16x64.*dst=a:bf16:2x16x16x810/))
  })
  it.each([
    ['f32', 0],
    ['tf32', 1],
    ['bf16', 2],
    ['f16', 3],
  ])('%s: every op is as its reference, in any order', { timeout: all ? 3_600_000 : 300_000 }, (precision, from) => {
    const lines = all ? [...new Set([...small, ...shapeLines(37)])] : sample(small, 4, from)
    const { status, stdout } = run(lines, precision, 0, 0, '3,4,7')
    expect({ status, stdout }).toEqual({ status: 0, stdout: expect.stringMatching(/: \d+ shapes, 0 off\n$/) })
    const tried = Number(/: (\d+) shapes/.exec(stdout)?.[1])
    expect(tried).toBeGreaterThan((all ? 10 : 1) * (precision === 'tf32' ? 15 : 35))
  })
  it('finds a result that is another convolution', { timeout: 60_000 }, () => {
    const line = small.find((one) => one.startsWith('f32 depthwise_conv2d_stats stride=1,pad_t=1'))!
    // The reference goes by names, the kernel by positions: to it, another window.
    const crossed = line.replace('stride=1,pad_t=1,pad_l=1,pad_b=1', 'stride=1,pad_b=2,pad_l=1,pad_t=0')
    const { status, stdout } = run([crossed], 'f32')
    expect(stdout).toMatch(/ dst\[\d+\]: wants .* is off by/)
    expect(stdout).toMatch(/f32: 1 shapes, 1 off\n$/)
    expect(status).toBe(1)
  })
  it('goes on where an earlier call had no more time', { timeout: 60_000 }, () => {
    const lines = small.filter((line) => line.startsWith('f32 conv2d')).slice(0, 3)
    const later = Math.floor(Date.now() / 1e3) + 3600
    expect(run(lines, 'f32', 0, 1)).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/^f32: 0 shapes, 0 off, go on with line 0 of 3\n$/),
    })
    expect(run(lines, 'f32', 1, later)).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/f32: 2 shapes, 0 off, to the end\n$/),
    })
    // Nothing of a precision in a whole list is a mistake, in the rest of one it is not.
    expect(run(lines, 'f16', 0, later).status).toBe(1)
    expect(run(lines, 'f16', 1, later).status).toBe(0)
  })
  it('has said which line it began when a launch of it fails', { timeout: 60_000 }, () => {
    const lines = small.filter((line) => line.startsWith('f32 conv2d')).slice(0, 3)
    const later = Math.floor(Date.now() / 1e3) + 3600
    vi.stubEnv('FAKE_CUDA_FAIL', 'cuLaunchKernelEx:1:700')
    const { status, stdout } = run(lines, 'f32', 1, later)
    vi.unstubAllEnvs()
    expect({ status, stdout }).toEqual({ status: 1, stdout: expect.stringMatching(/^line 1\n[^\n]+: [^\n]+\n$/) })
  })
  it.each([
    [['f32 conv2d'], 'f32', /line 1: f32 conv2d/],
    [[], 'f64', /no precision f64/],
  ])('refuses %j for %s', (lines, precision, message) => {
    expect(run(lines, precision)).toMatchObject({ status: 64, stdout: expect.stringMatching(message) })
  })
})

const libraries = fakeLibraries('libcudnn.so.9')
describeWith({ ...libraries, missing: libraries.missing ?? needed.missing }, 'what cuDNN says that it can', () => {
  const run = (args: readonly string[], more: NodeJS.ProcessEnv = {}) =>
    spawnSync(PROGRAM, args, {
      encoding: 'utf8',
      env: { ...process.env, EFFNET_LIB_DIR: libraries.folder, EFFNET_REHEARSE: '1', ...more },
    })
  it.each([
    ['bf16', 42],
    ['tf32', 42],
  ] as const)('%s: each graph is done by it, as its reference', { timeout: 120_000 }, (precision, graphs) => {
    const { status, stdout } = run(['cudnn', precision])
    expect({ status, stdout }).toEqual({
      status: 0,
      stdout: expect.stringMatching(`${precision}: ${graphs} of ${graphs} graphs, 0 off, 0 without a plan\n$`),
    })
    expect(stdout).toMatch(/forward_bias_silu_residual k3 s2 \S+: \d+ % of its limit/)
    expect(stdout).toMatch(/bwd_weights\S* k3 s1 /)
  })
  it('that has no plan for any of them fails', { timeout: 60_000 }, () => {
    const { status, stdout } = run(['cudnn', 'f16'], { FAKE_CUDNN_NO_PLAN: '1' })
    expect({ status, stdout }).toEqual({
      status: 1,
      stdout: expect.stringMatching(/f16: 42 of 42 graphs, 0 off, 42 without a plan\n$/),
    })
  })
  it('ends in time, and goes on with what is left', { timeout: 60_000 }, () => {
    const { status, stdout } = run(['cudnn', 'f16', '0', '1'])
    const left = 'f16: 0 of 42 graphs, 0 off, 0 without a plan, go on with line 0 of 42\n'
    expect({ status, stdout }).toEqual({ status: 0, stdout: left })
    expect(run(['cudnn', 'f16', '41', `${Math.floor(Date.now() / 1e3) + 3600}`])).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/^line 41\n.*\nf16: 1 of 42 graphs, 0 off, 0 without a plan, to the end\n$/),
    })
  })
  it('describes the GPU', () => {
    expect(run(['device'])).toMatchObject({ status: 0, stdout: expect.stringContaining('"deviceName"') })
    // Where cuDNN is missing that is skipped; what else goes wrong is no such thing.
    expect(run(['device'], { EFFNET_LIB_DIR: FAKE_DRIVER.folder })).toMatchObject({
      status: 75,
      stdout: expect.stringMatching(/^cuDNN: /),
    })
    expect(run(['device'], { FAKE_CUDA_FAIL: 'cuInit:1:999' })).toMatchObject({ status: 1 })
  })
})
