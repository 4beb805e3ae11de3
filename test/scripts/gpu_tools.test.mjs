/** The stages of gpu-check that need tools of a CUDA toolkit, with made-up tools: what each way they may end comes to. */
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'

let dir
beforeEach(() => {
  dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-gpu-tools-'))
  for (const name of ['bin', 'logs', 'tests']) mkdirSync(path.join(dir, name))
  symlinkSync(path.resolve('scripts'), path.join(dir, 'scripts'))
  write('version.txt', 'one archive')
  write('sources.txt', 'its sources')
  write('logs/call.json', '{}')
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

const write = (name, text) => {
  writeFileSync(path.join(dir, name), text)
  chmodSync(path.join(dir, name), 0o755)
}
const run = (script, seconds = 60, before = []) => {
  const env = {
    ...process.env,
    PATH: `${dir}/bin:${process.env.PATH}`,
    EFFNET_REHEARSE: undefined,
    EFFNET_GPU_CHECK_LOGS: `${dir}/logs`,
    EFFNET_STAGE_END: String(Math.floor(Date.now() / 1e3) + seconds),
  }
  const { status, stdout } = spawnSync('env', [...before, 'bash', `scripts/gpu/${script}.sh`], {
    cwd: dir,
    env,
    encoding: 'utf8',
  })
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

describe.each([
  ['shapes', 'logs/shapes', 'shapes.txt', 'shapes'],
  ['rows', 'logs/rows', 'cudnn', 'graphs'],
])('%s', (script, folder, word, things) => {
  /** A list of 5 lines; by precision and line what happens there: a line of shell, "go on" where time is over. */
  const program = (lines, start = ':') => {
    const cases = Object.entries(lines).map(([where, line]) =>
      line === 'go on'
        ? `    ${where}) echo "$2: $tried ${things}, 0 off, go on with line $i of 5"; exit 0 ;;\n`
        : `    ${where}) ${line} ;;\n`,
    )
    write(
      'tests/gpu_shapes_test',
      `#!/bin/bash
[ "$1" = device ] && exit 0
echo "$*" >>calls
[ "$1" = ${word} ] || exit 64
${start}
tried=0
for ((i = $3; i < 5; i++)); do
  case $2-$i in
${cases.join('')}    *) echo "line $i" ;;
  esac
  tried=$((tried + 1))
done
echo "$2: $tried ${things}, 0 off, to the end"
`,
    )
  }
  const calls = () => {
    const all = readFileSync(path.join(dir, 'calls'), 'utf8').trimEnd().split('\n')
    rmSync(path.join(dir, 'calls'))
    return all.map((line) => line.split(' ').slice(1, 3).join(' ')).sort()
  }
  it('go on behind a line that breaks off, and tell of it', () => {
    program({ 'bf16-2': 'echo line 2; exit 1', 'f16-3': 'echo line 3; kill -ALRM $$' })
    const { status, said, stdout } = run(script)
    expect(status).toBe(1)
    expect(calls()).toEqual(['bf16 0', 'bf16 3', 'f16 0', 'f16 4', 'f32 0', 'tf32 0'])
    expect(stdout).toContain('BROKE OFF in line 2: exit code 1\nfrom line 3:\n')
    expect(stdout).toContain('BROKE OFF in line 3: exit code 142\n')
    expect(said).toBe(
      [
        `f32: 5 ${things}, 0 off, to the end`,
        `tf32: 5 ${things}, 0 off, to the end`,
        `bf16: 2 ${things}, 0 off, to the end, 1 BROKEN OFF, WRONG (its log says what)`,
        `f16: 1 ${things}, 0 off, to the end, 1 BROKEN OFF, WRONG (its log says what)`,
      ].join(';'),
    )
    // Once more from the start, where all is well.
    program({})
    expect(run(script).status).toBe(0)
    expect(calls()).toEqual(['bf16 0', 'f16 0', 'f32 0', 'tf32 0'])
  })
  it('are partial until each precision is at its end', () => {
    program({ 'f32-4': 'go on', 'f16-1': 'go on' })
    expect(run(script)).toMatchObject({ status: 76, said: expect.stringContaining('f32: 4') })
    program({})
    calls()
    expect(run(script).status).toBe(0)
    expect(calls()).toEqual(['f16 1', 'f32 4'])
  })
  it('end where no line begins, and begin with the same one in a later call', () => {
    program({}, 'echo GPU: no; exit 1')
    expect(run(script)).toMatchObject({ status: 1, said: expect.stringContaining('no line begun: exit code 1') })
    expect(calls()).toEqual(['bf16 0', 'f16 0', 'f32 0', 'tf32 0'])
  })
  it('ask nothing once time is over', () => {
    program({})
    const said = ['f32', 'tf32', 'bf16', 'f16'].map((precision) => `${precision}: no time`).join(';')
    expect(run(script, 2)).toMatchObject({ status: 76, said })
    expect(existsSync(path.join(dir, 'calls'))).toBe(false)
  })
  it('go on with the line that a stage was stopped in, and forget nothing wrong before it', () => {
    // As `timeout` does: everything of the stage at once.
    const stop = 'echo line 2; kill -TERM 0; sleep 60'
    program({ 'bf16-2': stop, 'bf16-1': 'echo line 1; echo "conv2d x[1]: wants 1 (terms 1), is off by 2 of what it may"' })
    expect(run(script, 60, ['setsid', '--wait']).status).not.toBe(0)
    expect(readFileSync(path.join(dir, `${folder}/bf16.last`), 'utf8')).toContain('line 2\n')
    calls()
    program({})
    const { status, said, stdout } = run(script)
    expect(status).toBe(1)
    expect(calls()).toContain('bf16 2')
    expect(stdout).toContain('is off by 2 of what it may\nbf16: stopped in line 2\nfrom line 2:\n')
    expect(said).toContain(`bf16: 3 ${things}, 0 off, to the end, WRONG (its log says what)`)
    expect(existsSync(path.join(dir, `${folder}/bf16.last`))).toBe(false)
  })
  it('go on from a stopped stage where nothing was wrong, or no line begun', () => {
    program({})
    run(script, 2)
    write(`${folder}/f32.last`, 'line 0\nline 3\n')
    write(`${folder}/f16.last`, 'GPU: none\n')
    expect(run(script).status).toBe(0)
    expect(calls()).toEqual(['bf16 0', 'f16 0', 'f32 3', 'tf32 0'])
  })
})

it('what is wrong in a part that was stopped is known by the words of the program', () => {
  const [, words] = /grep -q '(.*)' "\$1\.last"/.exec(readFileSync('scripts/gpu/parts.sh', 'utf8'))
  const program = readFileSync('native/tests/cuda_shapes_test.cc', 'utf8')
  for (const each of words.split('\\|')) expect(program).toMatch(new RegExp(`printf\\("[^"]*${each}`))
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
    const gpu = (driver, date) =>
      write('logs/call.json', JSON.stringify({ date, version: 'one', gpu: 'NVIDIA H200', driver, cuda: 13000 }))
    gpu('580.65.06', '2026-11-21')
    expect(run('memcheck').status).toBe(1)
    sanitizer({})
    expect(run('memcheck').status).toBe(0)
    sanitizer({ linear: 'exit 9' })
    gpu('580.65.06', '2026-11-22')
    expect(run('memcheck').status).toBe(0)
    gpu('580.95.05', '2026-11-22')
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

describe('tuned', () => {
  it("is bench of every mode beside PyTorch's anchor, its choices among the logs", () => {
    write('bin/python3', '#!/bin/sh\necho "python3 $*"\n')
    write('bin/node', '#!/bin/sh\necho "$1 $EFFNET_CUDA_TUNE $EFFNET_CACHE_DIR $EFFNET_BENCH_MODE"\nexit 76\n')
    expect(run('tuned')).toEqual({
      status: 76,
      said: `scripts/gpu/bench.mjs 1 ${dir}/logs/tuned`,
      stdout: expect.stringContaining('python3 scripts/gpu/torch_peer.py --anchor\n'),
    })
  })
  it('goes on from choices of the same archive alone', () => {
    write('bin/python3', '#!/bin/sh\n')
    write('bin/node', '#!/bin/sh\nls $EFFNET_CACHE_DIR\ntouch $EFFNET_CACHE_DIR/choice\n')
    expect(run('tuned').said).toBe('of')
    expect(run('tuned').stdout).toContain('choice\n')
    write('sources.txt', 'other sources')
    expect(run('tuned').stdout).not.toContain('choice')
  })
  it('is measured all the same where there is no PyTorch', () => {
    write('bin/python3', '#!/bin/sh\nexit 1\n')
    write('bin/node', '#!/bin/sh\necho measured\n')
    expect(run('tuned')).toEqual({ status: 0, said: 'measured', stdout: 'no PyTorch with a GPU and timm\nmeasured\n' })
  })
})
