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
function check(stages, args, seconds, changed = false) {
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
  const script = path.join(dir, 'scripts/gpu-check.sh')
  write('work/sources.txt', execFileSync('/bin/bash', [script, '--sources'], { encoding: 'utf8' }))
  if (changed) write('scripts/gpu/changed.mjs', '')
  execFileSync('tar', ['-C', path.join(dir, 'work'), '-cJf', path.join(dir, '.gpu-check/pack.tar.xz'), '.'])
  const env = { ...process.env, EFFNET_GPU_CHECK_SECONDS: seconds }
  const { status, stderr } = spawnSync('/bin/bash', [script, ...args, '--out', path.join(dir, 'out')], { env, encoding: 'utf8' })
  if (status === 66) return { status, stderr }
  const rows = readFileSync(path.join(dir, 'out/table.txt'), 'utf8')
    .trimEnd()
    .split('\n')
    .filter((row) => !/^(gpu-check|stage) /.test(row))
  return { status, stages: Object.fromEntries(rows.map((row) => row.split(/ +/).slice(0, 2))) }
}

describe('scripts/gpu-check.sh', () => {
  it('ends by itself: a stage that hangs is stopped, and the rest has no time', { timeout: 60_000 }, () => {
    const { status, stages } = check({ 'kernels.sh': 'exec sleep 600' }, ['--stage', 'smoke,kernels,layers'], '15')
    expect(stages).toEqual({ smoke: 'passed', kernels: 'timeout', layers: 'untried' })
    expect(status).toBe(1)
  })
  it('ends with 69 where there is no GPU, and runs nothing else', { timeout: 60_000 }, () => {
    expect(check({ 'smoke.mjs': 'echo no GPU; exit 69' }, [], '60')).toEqual({ status: 69, stages: { smoke: 'FAILED' } })
  })
  it('goes on where an instruction is not as defined, since what follows says what comes of it', { timeout: 60_000 }, () => {
    const { status, stages } = check({ 'smoke.mjs': 'exit 3' }, ['--stage', 'smoke,kernels'], '60')
    expect(stages).toEqual({ smoke: 'FAILED', kernels: 'passed' })
    expect(status).toBe(1)
  })
  it('runs nothing else where smoke itself fails', { timeout: 60_000 }, () => {
    expect(check({ 'smoke.mjs': 'exit 1' }, [], '60')).toEqual({ status: 1, stages: { smoke: 'FAILED' } })
  })
  it('keeps what an earlier call has said', { timeout: 60_000 }, () => {
    const said = () =>
      execFileSync('tar', ['-tzf', path.join(dir, 'out/logs.tar.gz')], { encoding: 'utf8' })
        .split('\n')
        .sort()
    check({}, ['--stage', 'smoke,bench'], '60')
    expect(said()).toEqual(['', './', './bench.log', './smoke.log'])
    rmSync(path.join(dir, 'scripts'), { recursive: true })
    rmSync(path.join(dir, '.gpu-check'), { recursive: true })
    const { stages } = check({}, ['--stage', 'second'], '60')
    expect(stages).toMatchObject({ smoke: 'passed', bench: 'passed', finetune: 'passed' })
    expect(said()).toEqual(expect.arrayContaining(['./bench.log', './finetune.log']))
  })
  it('tells what failed and what could not run', { timeout: 60_000 }, () => {
    const run = (stages) => {
      rmSync(path.join(dir, 'out'), { recursive: true, force: true })
      rmSync(path.join(dir, 'scripts'), { recursive: true, force: true })
      rmSync(path.join(dir, '.gpu-check'), { recursive: true, force: true })
      return check(stages, ['--stage', 'smoke,model,peer,memcheck'], '60')
    }
    const partly = { 'peer.sh': 'exit 75', 'memcheck.sh': 'exit 76' }
    const said = { smoke: 'passed', model: 'passed', peer: 'skipped', memcheck: 'partial' }
    expect(run(partly)).toEqual({ status: 0, stages: said })
    expect(run({ ...partly, 'model.mjs': 'exit 1' })).toEqual({ status: 1, stages: { ...said, model: 'FAILED' } })
  })
  it.each([
    [['--stage', 'modell'], 'no stage is called modell'],
    [['--stage', 'smoke,modell'], 'no stage is called modell'],
    [['--stage', 'peers', '--from', 'two'], '--from wants a number'],
    [['--stage', 'smoke,second'], 'second is a call of its own'],
    [['--stage'], '--stage wants a word behind it'],
    [['--halp'], 'unknown argument --halp'],
  ])('refuses %j', (args, message) => {
    const { status, stderr } = spawnSync('/bin/bash', ['scripts/gpu-check.sh', ...args], { encoding: 'utf8' })
    expect({ status, stderr }).toEqual({ status: 64, stderr: expect.stringContaining(message) })
    expect(stderr).toContain('memcheck')
  })
  it('--help tells of each stage', () => {
    const { status, stdout } = spawnSync('/bin/bash', ['scripts/gpu-check.sh', '--help'], { encoding: 'utf8' })
    expect(status).toBe(0)
    const known = /^known=(\S+)$/m.exec(readFileSync('scripts/gpu-check.sh', 'utf8'))[1].split(',')
    for (const name of known) expect(stdout).toMatch(new RegExp(`^ +${name} |--stage ${name}\\b`, 'm'))
  })
  it('asks for a GPU before any stage', { timeout: 60_000 }, () => {
    expect(check({ 'smoke.mjs': 'echo no GPU; exit 69' }, ['--stage', 'bench'], '60')).toEqual({
      status: 69,
      stages: { smoke: 'FAILED' },
    })
  })
  it('refuses an archive of other sources, unless it is told to take any, which the table says', { timeout: 60_000 }, () => {
    const refused = check({}, ['--stage', 'smoke'], '60', true)
    expect(refused).toEqual({ status: 66, stderr: expect.stringContaining('made of other sources than lie here') })
    const again = [path.join(dir, 'scripts/gpu-check.sh'), '--stage', 'smoke', '--any-pack', '--out', path.join(dir, 'out')]
    expect(spawnSync('/bin/bash', again).status).toBe(0)
    expect(readFileSync(path.join(dir, 'out/table.txt'), 'utf8')).toContain('of a test, of other sources than its scripts')
  })
  it('gives a stage that is named alone all the time, and few stages more of it', { timeout: 60_000 }, () => {
    const left = (name) => `echo $((EFFNET_STAGE_END - $(date +%s))) >${dir}/${name}`
    const seconds = (name) => Number(readFileSync(path.join(dir, name), 'utf8'))
    const all = { 'bench.mjs': left('bench'), 'peer.sh': left('peer') }
    check(all, ['--stage', 'bench'], '500')
    expect(seconds('bench')).toBeGreaterThan(480)
    for (const name of ['scripts', '.gpu-check']) rmSync(path.join(dir, name), { recursive: true })
    check(all, ['--stage', 'bench,peer'], '500')
    // 110 s and 80 s of what a first call has: shares of this one, and the first ended at once.
    expect(seconds('bench')).toBeGreaterThan(270)
    expect(seconds('bench')).toBeLessThan(290)
    expect(seconds('peer')).toBeGreaterThan(480)
  })
  it('goes on with the logs of an earlier call, into a folder that begins empty', { timeout: 60_000 }, () => {
    check({ 'shapes.sh': 'echo partly; mkdir $EFFNET_GPU_CHECK_LOGS/shapes; exit 76' }, ['--stage', 'shapes'], '60')
    for (const name of ['scripts', '.gpu-check']) rmSync(path.join(dir, name), { recursive: true })
    cpSync(path.join(dir, 'out'), path.join(dir, '.gpu-check-kept'), { recursive: true })
    const kept = path.join(dir, '.gpu-check-kept')
    rmSync(path.join(dir, 'out'), { recursive: true })
    const { status } = check(
      { 'shapes.sh': 'test -d $EFFNET_GPU_CHECK_LOGS/shapes' },
      ['--stage', 'shapes', '--continue', kept],
      '60',
    )
    expect(status).toBe(0)
    expect(readFileSync(path.join(dir, 'out/table.txt'), 'utf8')).toMatch(/shapes +partial[\s\S]*shapes +passed/)
    for (const [from, message] of [
      [kept, 'has logs of its own'],
      [path.join(dir, 'work'), 'has no logs.tar.gz'],
    ]) {
      const args = [path.join(dir, 'scripts/gpu-check.sh'), '--continue', from, '--out', path.join(dir, 'out')]
      expect(spawnSync('/bin/bash', args, { encoding: 'utf8' })).toMatchObject({
        status: 64,
        stderr: expect.stringContaining(message),
      })
    }
  })
  /** What the archive's own tar does once it has written its file, in the calls that follow smoke. */
  const tarEnds = (code) => ({
    'smoke.mjs': `printf '#!/bin/sh\\n${execFileSync('which', ['tar'], { encoding: 'utf8' }).trim()} "$@"; echo tar: no; exit ${code}' >bin/tar; chmod +x bin/tar`,
  })
  it('keeps logs one of which has grown meanwhile', { timeout: 60_000 }, () => {
    expect(check(tarEnds(1), ['--stage', 'bench'], '60')).toEqual({ status: 0, stages: { smoke: 'passed', bench: 'passed' } })
    const said = execFileSync('tar', ['-tzf', path.join(dir, 'out/logs.tar.gz')], { encoding: 'utf8' })
    expect(said).toContain('./bench.log')
  })
  it('tells of logs that could not be kept', { timeout: 60_000 }, () => {
    const { status, stages } = check(tarEnds(2), ['--stage', 'smoke'], '60')
    expect({ status, stages }).toEqual({ status: 1, stages: { smoke: 'passed', logs: 'FAILED' } })
    expect(readFileSync(path.join(dir, 'out/table.txt'), 'utf8')).toContain('not kept: tar ended with 2: tar: no')
  })
  it('refuses an archive and logs that are none, in a line', { timeout: 60_000 }, () => {
    check({}, ['--stage', 'smoke'], '60')
    const again = () => {
      const args = [path.join(dir, 'scripts/gpu-check.sh'), '--stage', 'smoke', '--out', path.join(dir, 'out')]
      const { status, stderr } = spawnSync('/bin/bash', args, { encoding: 'utf8' })
      return { status, lines: stderr.trimEnd().split('\n') }
    }
    write('out/logs.tar.gz', 'garbage')
    expect(again()).toEqual({
      status: 66,
      lines: [expect.stringMatching(/logs\.tar\.gz, of an earlier call, cannot be unpacked/)],
    })
    write('.gpu-check/pack.tar.xz', 'garbage')
    expect(again()).toEqual({
      status: 66,
      lines: [expect.stringMatching(/pack\.tar\.xz cannot be unpacked \(.+\): --pack again$/)],
    })
    execFileSync('tar', ['-C', path.join(dir, 'work'), '-cJf', path.join(dir, '.gpu-check/pack.tar.xz'), 'bin'])
    expect(again()).toEqual({ status: 66, lines: ['.gpu-check/pack.tar.xz cannot be unpacked: --pack again'] })
  })
  it('tells the loader of every folder with libraries of the archive', { timeout: 60_000 }, () => {
    check({ 'model.mjs': `echo "$LD_LIBRARY_PATH" >${dir}/said` }, ['--stage', 'model'], '60')
    const said = readFileSync(path.join(dir, 'said'), 'utf8').trim().split(':')
    expect(said).toEqual(expect.arrayContaining([expect.stringMatching(/\/lib$/), expect.stringMatching(/\/build\/Release$/)]))
  })
  it('has a second call', { timeout: 60_000 }, () => {
    const { status, stages } = check({}, ['--stage', 'second'], '60')
    expect(Object.keys(stages)).toEqual([
      'smoke',
      'shapes',
      'libraries',
      'chosen',
      'rows',
      'finetune',
      'decode',
      'tuned',
      'racecheck',
    ])
    expect(status).toBe(0)
  })
})

describe('the time of a call', () => {
  const script = readFileSync('scripts/gpu-check.sh', 'utf8')
  const limits = new Map([...script.matchAll(/\[(\w+)\]=(\d+)/g)].map(([, name, seconds]) => [name, Number(seconds)]))
  it('has a limit for each stage, in the order of their commands', () => {
    expect([...limits.keys()]).toEqual([...script.matchAll(/^ *stage (\w+) (?:node|bash) /gm)].map(([, name]) => name))
  })
  const first = /^stages=(\S+)$/m.exec(script)[1].split(',')
  const second = ['smoke', .../\[ "\$stages" = second \] && stages=(\S+)/.exec(script)[1].split(',')]
  const sum = (names) => names.reduce((total, name) => total + limits.get(name), 0)
  // Unpacking takes some of the 540 seconds.
  it.each([
    ['first', first],
    ['second', second],
  ])('is enough for all stages of the %s one', (_, names) => {
    expect([...limits.keys()].filter((name) => names.includes(name))).toEqual(names)
    expect(sum(names)).toBeLessThanOrEqual(525)
  })
  it('is left for bench and peer by what comes before them', () => {
    expect(sum(first.slice(0, first.indexOf('peer') + 1))).toBeLessThanOrEqual(420)
  })
})

describe('results of a GPU', () => {
  const train = { mode: 'train', model: 'efficientnet_b0', batch: 256, size: 224, precision: 'bf16-mixed' }
  const infer = { ...train, mode: 'infer', batch: 1 }
  const of = (hour) => ({
    date: `2026-11-21T${hour}:00:00Z`,
    version: 'effnet-native abc',
    gpu: 'NVIDIA H200',
    driver: '580.65.06',
    cuda: 13000,
  })
  const [first, later, last] = ['10', '11', '12'].map(of)
  const measured = { images_per_s: 3000, ms: 85, share_of_own_bytes: 0.25 }
  const ours = [train, infer].map((row) => ({ ...row, call: first, ...measured }))
  /** Logs of several calls side by side; the last one's smoke. */
  const run = (name, { call = first, bench = ours, tuned = [], peer = [], peers = [] }) => {
    const machine = JSON.stringify({ call, driverVersion: call.cuda, gpus: [{ name: call.gpu }] }, null, 1)
    const lines = (rows) => `${rows.map((row) => JSON.stringify(row)).join('\n')}\nin one line\n`
    write(`${name}-logs/smoke.log`, `${machine}\n[ OK ] {1, 1}\nNVIDIA H200, compute capability 9.0\n`)
    for (const [stage, rows] of Object.entries({ bench, tuned, peer })) write(`${name}-logs/${stage}.log`, lines(rows))
    peers.forEach((row, i) => {
      write(`${name}-logs/peers/0${i}.jsonl`, `${JSON.stringify(row)}\n`)
    })
    mkdirSync(path.join(dir, name))
    execFileSync('tar', ['-C', path.join(dir, `${name}-logs`), '-czf', path.join(dir, name, 'logs.tar.gz'), '.'])
    return path.join(dir, name)
  }
  const eager = { ...train, torch: '2.11', cudnn: 91900, compile: 'eager', images_per_s: 1000, call: first }
  it('are a file a case, the peer of the same call beside it', () => {
    const [training, inference] = reports(run('mine', { peer: [{ ...eager, images_per_s: 2000 }] }))
    expect(training.file).toBe('2026-11-21_nvidia-h200_driver580.65.06_cuda13.0_train_efficientnet-b0_224px_bf16-mixed_b256.json')
    expect(training.report).toMatchObject({ ratio_to_peer: 1.5, share_of_own_bytes: 0.25, version: 'effnet-native abc' })
    expect(training.report.machine).toMatchObject({ gpus: [{ name: 'NVIDIA H200' }] })
    expect(inference.report).toMatchObject({ peer: { refused: 'PyTorch was not measured on it' }, ratio_to_peer: null })
    expect(inference.report).not.toHaveProperty('best_peer')
  })
  it('are of the call that measured them, not of the last one', () => {
    const [training] = reports(run('mine', { call: { ...later, version: 'effnet-native def' }, peer: [eager] }))
    expect(training.report).toMatchObject({ date: first.date, version: 'effnet-native abc', machine: null, ratio_to_peer: 3 })
  })
  it('have no ratio to an anchor of another call', () => {
    const [training] = reports(run('mine', { peer: [{ ...eager, call: later }] }))
    expect(training.report).toMatchObject({ peer: { refused: 'this call has no anchor' }, ratio_to_peer: null })
  })
  it('are refused where a row does not say of which call it is', () => {
    expect(() => reports(run('mine', { bench: [{ ...train, ...measured }] }))).toThrow('does not say of which call')
    expect(() => reports(run('none', { bench: [] }))).toThrow('no row of bench or tuned')
  })
  it('of measured kernels have files of their own, beside the first call where its anchor agrees', () => {
    const tuned = [train, infer].map((row) => ({ ...row, ...measured, call: later, tuned: true, images_per_s: 4000 }))
    const anchor = { ...eager, call: later, images_per_s: 1010 }
    const peer = [eager, { ...eager, ...infer, images_per_s: 500 }]
    const files = reports(run('mine', { tuned: [anchor, ...tuned], peer }))
    expect(files.map(({ file }) => /(train|infer).*/.exec(file)[0])).toEqual(
      ['', '_tuned'].flatMap((end) => [
        `train_efficientnet-b0_224px_bf16-mixed_b256${end}.json`,
        `infer_efficientnet-b0_224px_bf16-mixed_b1${end}.json`,
      ]),
    )
    expect(files[3].report).toMatchObject({ date: later.date, ratio_to_peer: 8 })
    const off = reports(run('off', { tuned: [{ ...anchor, images_per_s: 1050 }, ...tuned], peer }))
    expect(off[3].report).toMatchObject({ ratio_to_peer: null, peer: { refused: expect.stringContaining('4.8 % apart') } })
  })
  const there = (rows) => rows.map((row) => ({ ...row, call: { ...later, ...row.call } }))
  const table = [
    { ...eager, call: {}, images_per_s: 1029 },
    { ...eager, call: {}, compile: 'default', images_per_s: 1500 },
    { ...eager, call: {}, compile: 'max-autotune', images_per_s: undefined, error: 'RuntimeError: no' },
  ]
  const best = (rows, anchor = [eager], more = []) => {
    const mine = run('mine', { peer: anchor })
    const folders = [run('theirs', { call: later, bench: [], peers: there(rows) })]
    if (more.length > 0) folders.push(run('more', { call: last, bench: [], peers: more }))
    return reports(mine, folders).map(({ report }) => report.best_peer)
  }
  it("are beside PyTorch's fastest mode of another call whose anchor agrees", () => {
    const [training, inference] = best(table)
    expect(training).toMatchObject({ compile: 'default', ratio: 2 })
    expect(inference).toMatchObject({ refused: 'PyTorch was not measured on it', complete: false })
  })
  it('tell of every mode of PyTorch whether it is among them', () => {
    const slow = { ...eager, call: last, precision: 'fp16-mixed', images_per_s: 100 }
    const [training] = best(table, [eager], [slow])
    expect(training).toMatchObject({ compile: 'default', ratio: 2, complete: false })
    expect(training.modes).toEqual({
      considered: [
        { precision: 'bf16-mixed', compile: 'eager', images_per_s: 1029 },
        { precision: 'bf16-mixed', compile: 'default', images_per_s: 1500 },
      ],
      refused: [{ precision: 'fp16-mixed', compile: 'eager', reason: 'that call has no eager of what this one has' }],
      failed: [{ precision: 'bf16-mixed', compile: 'max-autotune', error: 'RuntimeError: no' }],
      missing: [
        { precision: 'bf16-mixed', compile: 'reduce-overhead' },
        ...['default', 'reduce-overhead', 'max-autotune'].map((compile) => ({ precision: 'fp16-mixed', compile })),
      ],
    })
  })
  const whole = ['bf16-mixed', 'fp16-mixed'].flatMap((precision) =>
    ['eager', 'default', 'reduce-overhead', 'max-autotune'].map((compile, i) => ({
      ...eager,
      call: {},
      precision,
      compile,
      images_per_s: 1000 + 100 * i,
    })),
  )
  it.each([
    ['all modes of both types', whole, true],
    ['one that failed in an earlier call', [{ ...whole[3], images_per_s: undefined, error: 'no' }, ...whole], true],
    ['one that failed', whole.with(6, { ...whole[6], images_per_s: undefined, error: 'no' }), false],
    ['one less', whole.slice(0, -1), false],
    ['one of another PyTorch', whole.with(5, { ...whole[5], torch: '2.12' }), false],
  ])('are complete or not: %s', (_, rows, complete) => {
    expect(best(rows)[0]).toMatchObject({ complete, compile: 'max-autotune', images_per_s: 1300 })
  })
  it('of FP32 are complete with the modes of FP32', () => {
    const rows = whole.slice(0, 4).map((row) => ({ ...row, precision: 'fp32' }))
    const bench = [{ ...train, precision: 'fp32', call: first, ...measured }]
    const mine = run('mine', { bench, peer: [{ ...eager, precision: 'fp32' }] })
    const of = (name, peers) => reports(mine, [run(name, { call: later, bench: [], peers: there(peers) })])[0].report.best_peer
    expect(of('whole', rows)).toMatchObject({ complete: true, modes: { missing: [] } })
    expect(of('less', rows.slice(0, 3))).toMatchObject({ complete: false })
  })
  it('takes the faster 16-bit type of PyTorch, but no other precision', () => {
    const fp16 = { ...eager, call: {}, precision: 'fp16-mixed', compile: 'max-autotune', images_per_s: 2000 }
    expect(best([...table, fp16, { ...fp16, precision: 'tf32', images_per_s: 9000 }])[0]).toMatchObject({
      compile: 'max-autotune',
      precision: 'fp16-mixed',
      ratio: 1.5,
    })
  })
  it('takes no mode without an anchor in its own call', () => {
    const fp16 = { ...eager, call: last, precision: 'fp16-mixed', compile: 'max-autotune', images_per_s: 2000 }
    expect(best(table, [eager], [fp16])[0]).toMatchObject({ compile: 'default' })
  })
  it('takes modes of several calls, each by its own anchor', () => {
    const fp16 = { ...eager, call: last, precision: 'fp16-mixed', compile: 'max-autotune', images_per_s: 2000 }
    expect(best(table, [eager], [{ ...eager, call: last }, fp16])[0]).toMatchObject({ ratio: 1.5 })
  })
  it.each([
    ['anchors too far apart', [{ ...table[0], images_per_s: 1031 }, table[1]], 'the anchors are 3.1 % apart'],
    ['another PyTorch', table.map((row) => ({ ...row, torch: '2.12' })), 'torch is 2.11 here, 2.12 there'],
    ['another PyTorch of a mode', [table[0], { ...table[1], cudnn: 92000 }], 'cudnn is 91900 here, 92000 there', 1],
    [
      'another driver',
      table.map((row) => ({ ...row, call: { driver: '580.95.05' } })),
      'the driver is 580.65.06 here, 580.95.05',
    ],
    ['another GPU', table.map((row) => ({ ...row, call: { gpu: 'NVIDIA H100' } })), 'gpu is NVIDIA H200 here, NVIDIA H100 there'],
    ['an unknown driver', table.map((row) => ({ ...row, call: { driver: '' } })), "the driver's release is not known"],
    ['no anchor there', table.slice(1), 'that call has no eager of what this one has'],
  ])('are not beside it with %s', (_, rows, reason, usable = 0) => {
    const [training] = best(rows)
    if (usable) expect(training).toMatchObject({ compile: 'eager' })
    else expect(training).toMatchObject({ refused: expect.stringContaining(reason), complete: false, modes: { considered: [] } })
  })
})
