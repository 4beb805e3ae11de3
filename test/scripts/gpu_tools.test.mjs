/** The stages of gpu-check that need tools of a CUDA toolkit, with made-up tools: what each way they may end comes to. */
import { spawnSync } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'

let dir
beforeEach(() => {
  dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-gpu-tools-'))
  for (const name of ['bin', 'logs', 'tests']) mkdirSync(path.join(dir, name))
  symlinkSync(path.resolve('scripts'), path.join(dir, 'scripts'))
  write('version.txt', 'one archive')
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

const write = (name, text) => {
  writeFileSync(path.join(dir, name), text)
  chmodSync(path.join(dir, name), 0o755)
}
const run = (script, seconds = 60) => {
  const env = {
    ...process.env,
    PATH: `${dir}/bin:${process.env.PATH}`,
    EFFNET_GPU_CHECK_LOGS: `${dir}/logs`,
    EFFNET_STAGE_END: String(Math.floor(Date.now() / 1e3) + seconds),
  }
  const { status, stdout } = spawnSync('bash', [`scripts/gpu/${script}.sh`], { cwd: dir, env, encoding: 'utf8' })
  return { status, said: stdout.trimEnd().split('\n').at(-1), stdout }
}

describe('kernels', () => {
  it('names what failed apart from what had no end in time', () => {
    for (const [name, line] of Object.entries({ bn: 'exit 0', conv: 'exit 1', se: 'exec sleep 60', shapes: 'exit 1' }))
      write(`tests/gpu_${name}_test`, `#!/bin/sh\n${line}\n`)
    expect(run('kernels', 3)).toMatchObject({
      status: 1,
      said: '3 programs, 1 failed: gpu_conv_test; not to their end: gpu_se_test',
    })
    write('tests/gpu_conv_test', '#!/bin/sh\n')
    expect(run('kernels', 3)).toMatchObject({ status: 124, said: '3 programs, 0 failed; not to their end: gpu_se_test' })
    write('tests/gpu_se_test', '#!/bin/sh\n')
    expect(run('kernels', 3)).toMatchObject({ status: 0, said: '3 programs, 0 failed' })
  })
})

describe('memcheck', () => {
  /** A sanitizer that runs no program: by its name, a line of shell. */
  const sanitizer = (lines) => {
    const cases = Object.entries(lines).map(([name, line]) => `  *gpu_${name}_test*) ${line} ;;\n`)
    write('bin/compute-sanitizer', `#!/bin/sh\necho "$*" >>${dir}/calls\ncase "$*" in\n${cases.join('')}esac\n`)
  }
  it('is partial where a program has no end in time, and goes on with that one', () => {
    sanitizer({ conv: 'exec sleep 60' })
    expect(run('memcheck', 6)).toMatchObject({
      status: 76,
      said: 'memcheck: 14 of 15 programs to their end, 0 with errors; not to their end: conv',
    })
    sanitizer({ linear: 'exit 9' })
    expect(run('memcheck')).toMatchObject({ status: 0, said: 'memcheck: 15 of 15 programs to their end, 0 with errors' })
    // Another machine with a GPU of the same name and driver is as good; another driver is not.
    const gpu = (release) =>
      write('bin/nvidia-smi', `#!/bin/sh\ncase "$*" in *-L*) date +%N ;; *) echo "NVIDIA H200, ${release}" ;; esac\n`)
    gpu('580.65.06')
    expect(run('memcheck').status).toBe(1)
    sanitizer({})
    expect(run('memcheck').status).toBe(0)
    sanitizer({ linear: 'exit 9' })
    expect(run('memcheck').status).toBe(0)
    gpu('580.95.05')
    expect(run('memcheck').status).toBe(1)
    sanitizer({})
    expect(run('memcheck').status).toBe(0)
    sanitizer({ linear: 'exit 9' })
    write('version.txt', 'another archive')
    expect(run('memcheck').status).toBe(1)
  })
  it('fails with what the program says that has errors, which a later call runs again', () => {
    sanitizer({ se: 'echo Invalid __global__ read; exit 9' })
    expect(run('memcheck')).toEqual({
      status: 1,
      said: 'memcheck: 15 of 15 programs to their end, 1 with errors: se',
      stdout: expect.stringContaining('Invalid __global__ read'),
    })
    sanitizer({})
    expect(run('memcheck').status).toBe(0)
  })
  it('is skipped where the tool has no device, not where it finds an error at once', () => {
    sanitizer({ instructions: 'echo "========= Error: Device not supported"; exit 1' })
    expect(run('memcheck')).toMatchObject({ status: 75, said: expect.stringContaining('Device not supported') })
    sanitizer({ instructions: 'echo "========= Invalid __shared__ write"; exit 9' })
    expect(run('memcheck').status).toBe(0)
  })
})

describe('counters', () => {
  const table = [
    '"ID","Kernel Name","dram__bytes.sum","gpu__time_duration.sum","sm__warps_active.avg.pct_of_peak_sustained_active"',
    '"","","byte","ns","%"',
    '"0","bn_act_bf16(Args)","1,000,000","10,000","50"',
    '"1","bn_act_bf16(Args)","3000000","30000","40"',
    '"2","se_gate_f32(Args)","8000","10000","10"',
  ]
  const ncu = (step) =>
    write(
      'bin/ncu',
      `#!/bin/bash
case "$*" in
  *OfDoubles*) echo '"0","check_doubles(Args)"' ;;
  *--import*) echo '${table.join("'; echo '")}' ;;
  *) ${step} ;;
esac
`,
    )
  it('are of the kernels that take longest, over all their launches', () => {
    ncu(`touch ${dir}/logs/counters/step.ncu-rep`)
    expect(run('counters')).toEqual({
      status: 0,
      said: '3 launches, 0.05 ms; longest bn_act_bf16 80 %, DRAM 100 GB/s',
      stdout: expect.stringContaining('bn_act_bf16: 2 launches, 40 us (80 %), DRAM 100 GB/s, warps 42 %\n'),
    })
  })
  it('fail where the step leaves none', () => {
    ncu('exit 4')
    expect(run('counters')).toMatchObject({ status: 1, said: 'no counters: ncu ended with 4' })
  })
  it('are skipped where none may be read', () => {
    write('bin/ncu', '#!/bin/sh\necho "==ERROR== ERR_NVGPUCTRPERM"\nexit 1\n')
    expect(run('counters')).toMatchObject({ status: 75, said: expect.stringContaining('ERR_NVGPUCTRPERM') })
  })
})
