import { execFileSync, spawnSync } from 'node:child_process'
import { chmodSync, cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { reports } from '../../scripts/gpu/results.mjs'

let dir
beforeEach(() => {
  dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-gpu-check-'))
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

const write = (name, text) => {
  mkdirSync(path.dirname(path.join(dir, name)), { recursive: true })
  writeFileSync(path.join(dir, name), text)
}

/** The script in a checkout and with an archive whose programs are made up: `node` and `bash` of each stage are these lines. */
function check(stages, args, seconds) {
  mkdirSync(path.join(dir, 'scripts'))
  cpSync(path.resolve('scripts/gpu-check.sh'), path.join(dir, 'scripts/gpu-check.sh'))
  for (const name of ['bin', 'models', 'scripts/gpu']) mkdirSync(path.join(dir, name), { recursive: true })
  write('package.json', '{}')
  write('work/version.txt', 'effnet-native of a test\n')
  for (const name of ['node', 'bash']) {
    const cases = Object.entries(stages).map(([file, line]) => `  *${file}) ${line} ;;\n`)
    write(`work/bin/${name}`, `#!/bin/sh\ncase "$1" in\n${cases.join('')}  *) echo nothing ;;\nesac\n`)
    chmodSync(path.join(dir, `work/bin/${name}`), 0o755)
  }
  mkdirSync(path.join(dir, '.gpu-check'))
  execFileSync('tar', ['-C', path.join(dir, 'work'), '-cJf', path.join(dir, '.gpu-check/pack.tar.xz'), '.'])
  const env = { ...process.env, EFFNET_GPU_CHECK_SECONDS: seconds }
  const { status } = spawnSync('/bin/bash', [path.join(dir, 'scripts/gpu-check.sh'), ...args, '--out', path.join(dir, 'out')], {
    env,
  })
  const rows = readFileSync(path.join(dir, 'out/table.txt'), 'utf8').trimEnd().split('\n').slice(2)
  return { status, stages: Object.fromEntries(rows.map((row) => row.split(/ +/).slice(0, 2))) }
}

describe('scripts/gpu-check.sh', () => {
  it('ends by itself: a stage that hangs is stopped, and the rest has no time', { timeout: 60_000 }, () => {
    const { status, stages } = check({ 'kernels.sh': 'exec sleep 600' }, ['--stage', 'smoke,kernels,layers'], '8')
    expect(stages).toEqual({ smoke: 'passed', kernels: 'timeout', layers: 'skipped' })
    expect(status).toBe(1)
  })
  it('ends with 69 where there is no GPU, and runs nothing else', { timeout: 60_000 }, () => {
    expect(check({ 'smoke.mjs': 'echo no GPU; exit 69' }, [], '60')).toEqual({ status: 69, stages: { smoke: 'FAILED' } })
  })
  it('tells what failed and what could not run', { timeout: 60_000 }, () => {
    const { status, stages } = check({ 'model.mjs': 'exit 1', 'peer.sh': 'exit 75' }, ['--stage', 'smoke,model,peer'], '60')
    expect(stages).toEqual({ smoke: 'passed', model: 'FAILED', peer: 'skipped' })
    expect(status).toBe(1)
  })
  it.each([
    [['--stage', 'modell'], 'no stage is called modell'],
    [['--stage', 'smoke,modell'], 'no stage is called modell'],
    [['--stage'], '--stage wants a word behind it'],
    [['--help'], 'unknown argument --help'],
  ])('refuses %j', (args, message) => {
    const { status, stderr } = spawnSync('/bin/bash', ['scripts/gpu-check.sh', ...args], { encoding: 'utf8' })
    expect({ status, stderr }).toEqual({ status: 64, stderr: expect.stringContaining(message) })
    expect(stderr).toContain('memcheck')
  })
  it('asks for a GPU before any stage', { timeout: 60_000 }, () => {
    expect(check({ 'smoke.mjs': 'echo no GPU; exit 69' }, ['--stage', 'bench'], '60')).toEqual({
      status: 69,
      stages: { smoke: 'FAILED' },
    })
  })
  it('has a second call', { timeout: 60_000 }, () => {
    const { status, stages } = check({}, ['--stage', 'second'], '60')
    expect(Object.keys(stages)).toEqual(['smoke', 'racecheck', 'libraries', 'shapes', 'tuned', 'finetune'])
    expect(status).toBe(0)
  })
})

describe('results of a GPU', () => {
  const train = { mode: 'train', model: 'efficientnet_b0', batch: 256, size: 224, precision: 'bf16-mixed' }
  const infer = { ...train, mode: 'infer', batch: 1 }
  it('are a file a case, the peer of the same run beside it', () => {
    write(
      'smoke.log',
      '{\n "driverVersion": 13000,\n "gpus": [{ "name": "NVIDIA H200" }]\n}\nNVIDIA H200, compute capability 9.0\n',
    )
    write('table.txt', 'gpu-check 2026-11-21T10:00:00Z effnet-native abc\nstage result s note\n')
    const measured = { images_per_s: 3000, ms: 85, ops_ms: 80, floor_ms: 20 }
    write('bench.log', `${[train, infer].map((row) => JSON.stringify({ ...row, ...measured })).join('\n')}\ntrain 3000/s\n`)
    write('peer.log', `${JSON.stringify({ ...train, torch: '2.11', images_per_s: 2000 })}\n`)
    const [first, second] = reports(dir)
    expect(first.file).toBe('2026-11-21_nvidia-h200_cuda13.0_train_efficientnet-b0_224px_bf16-mixed_b256.json')
    expect(first.report).toMatchObject({ ratio_to_peer: 1.5, share_of_byte_floor: 0.25, version: 'effnet-native abc' })
    expect(second.report).toMatchObject({ peer: null, ratio_to_peer: null })
  })
})
