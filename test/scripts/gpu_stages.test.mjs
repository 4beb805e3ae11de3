/** The stages of gpu-check that are programs of their own, where there is no GPU: what they say, and what they leave. */
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { partsOf, shareOfLimit } from '../../scripts/gpu/moves.mjs'
import { FAKE_DRIVER, itWith } from '../helpers/stand_in.js'

let dir
beforeEach(() => {
  dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-gpu-stages-'))
  mkdirSync(path.join(dir, 'logs'))
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

const CALL = { date: '2026-11-21T10:00:00Z', version: 'effnet-native of a test' }
const env = (more) => ({
  ...process.env,
  EFFNET_GPU_CHECK_LOGS: path.join(dir, 'logs'),
  EFFNET_GPU_CHECK_DATE: CALL.date,
  EFFNET_GPU_CHECK_VERSION: CALL.version,
  EFFNET_CACHE_DIR: path.join(dir, 'cache'),
  ...more,
})
const node = (name, more) => spawnSync(process.execPath, [`scripts/gpu/${name}.mjs`], { env: env(more), encoding: 'utf8' })
const log = (name) => path.join(dir, 'logs', name)
const rowsOf = (text) =>
  text
    .split('\n')
    .filter((line) => line.startsWith('{"'))
    .map((line) => JSON.parse(line))

describe('smoke', () => {
  const drivers = spawnSync('/sbin/ldconfig', ['-p'], { encoding: 'utf8' }).stdout?.includes('libcuda.so.1')
  it.skipIf(drivers)(`ends with 69 where there is no driver${drivers ? ' (there is one)' : ''}`, () => {
    const { status, stdout } = node('smoke', { EFFNET_LIB_DIR: dir })
    expect({ status, last: stdout.trimEnd().split('\n').at(-1) }).toEqual({
      status: 69,
      last: expect.stringMatching(/^no GPU: no NVIDIA driver: .*install driver/),
    })
    expect(existsSync(log('call.json'))).toBe(false)
  })
  itWith(FAKE_DRIVER, 'says which call it begins, and that instructions could not be tried', 60_000, async () => {
    const { status, stdout } = node('smoke', { EFFNET_LIB_DIR: FAKE_DRIVER.folder })
    expect(status).toBe(3) // the program that tries them is of an archive
    const call = JSON.parse(readFileSync(log('call.json'), 'utf8'))
    expect(call).toEqual({ ...CALL, gpu: expect.any(String), driver: expect.any(String), cuda: expect.any(Number) })
    expect(stdout).toContain('"call": {')
    expect(stdout.trimEnd().split('\n').at(-1)).toMatch(/^instructions FAILED \(ENOENT\)/)
  })
  itWith(FAKE_DRIVER, 'ends with 69 where the driver has no GPU to give', 60_000, async () => {
    const { status, stdout } = node('smoke', { EFFNET_LIB_DIR: FAKE_DRIVER.folder, FAKE_CUDA_FAIL: 'cuInit:1:100' })
    expect({ status, last: stdout.trimEnd().split('\n').at(-1) }).toEqual({
      status: 69,
      last: expect.stringMatching(/^no GPU: /),
    })
  })
})

describe('bench', () => {
  const rehearse = { EFFNET_LIB_DIR: FAKE_DRIVER.folder, EFFNET_REHEARSE: '1', EFFNET_BENCH_MODE: 'infer', EFFNET_CUDA_TUNE: '0' }
  itWith(FAKE_DRIVER, 'leaves rows that say of which call they are', 120_000, async () => {
    const call = { ...CALL, gpu: 'NVIDIA H200', driver: '580.65.06', cuda: 13000 }
    writeFileSync(log('call.json'), JSON.stringify(call))
    const { status, stdout } = node('bench', rehearse)
    expect(status).toBe(0)
    const [row, ...others] = rowsOf(stdout)
    expect(others).toEqual([])
    expect(row).toMatchObject({ mode: 'infer', model: 'efficientnet_b0', batch: 1, call, tuned: false, steps: 2 })
    expect(row.images_per_s).toBeCloseTo(1e3 / row.ms, 6)
    expect(row.longest.length).toBe(10)
    // Every op of it is among those ten or takes less than they do.
    expect(row.ops_ms).toBeGreaterThan(row.longest.reduce((total, { ms }) => total + ms, 0))
  })
  it('begins no case that may have no time left', () => {
    expect(node('bench', { ...rehearse, EFFNET_STAGE_END: '1' })).toMatchObject({
      status: 76,
      stdout: expect.stringContaining('no time for 1 of 1 cases'),
    })
  })
})

describe('loss curves', () => {
  // 80 steps of curves.mjs on a CPU, parts of 8: FP32; from parameters moved by what bf16 rounds, twice; bf16-mixed; and FP32 with
  // 0.9 and 0.7 of the learning rate.
  const reference = [2.1821, 1.6397, 1.0692, 1.0929, 1.2129, 1.0739, 1.1349, 1.0515, 0.8766, 1.0913]
  const draws = [
    [2.1809, 1.6367, 1.0717, 1.1148, 1.2385, 1.0953, 1.1264, 1.0033, 0.9161, 0.9348],
    [2.1809, 1.6352, 1.0773, 1.0938, 1.1534, 1.1275, 1.1582, 1.1048, 0.8828, 0.956],
  ]
  const bf16 = [2.1851, 1.6323, 1.0817, 1.1318, 1.1759, 1.0819, 1.2361, 1.0764, 0.924, 0.9589]
  const slower = [2.195, 1.685, 1.0698, 1.1247, 1.1301, 1.0312, 1.1626, 0.9997, 0.8618, 0.9734]
  const slow = [2.2219, 1.7878, 1.1484, 1.0005, 1.0928, 1.0321, 1.0082, 1.0029, 0.8379, 0.8718]
  const share = (parts) => shareOfLimit(parts, draws, reference, { rounding: 2 ** -8, most: 3 })
  it('in 16 bit are as FP32 from a start that is a little off, another learning rate is not', () => {
    expect(share(bf16)).toBeLessThan(1)
    expect(share(slower)).toBeGreaterThan(1.5)
    expect(share(slow)).toBeGreaterThan(5)
  })
  it('are off by as much of the limit as any part is, none of which falls along the curve', () => {
    expect(share(reference)).toBe(0)
    const first = 3 * 2 ** -8 * reference[0]
    expect(share(reference.with(0, reference[0] + first / 2))).toBeCloseTo(0.5, 9)
    const largest = Math.abs(draws[0][9] - reference[9])
    expect(share(reference.with(9, reference[9] - 6 * largest))).toBeCloseTo(2, 9)
  })
  it('are never near one without an end or with a loss that is none', () => {
    expect(share(reference.slice(1))).toBe(Infinity)
    expect(share(reference.with(7, NaN))).toBe(Infinity)
  })
  it('have a part every few steps', () => {
    expect(partsOf([1, 3, 5, 7, 9], 2)).toEqual([2, 6, 9])
  })
})

it('Python has no mistake in its form', () => {
  const files = readdirSync('scripts/gpu').filter((name) => name.endsWith('.py'))
  expect(files.length).toBeGreaterThan(1)
  const check = 'import ast, sys\nfor name in sys.argv[1:]: ast.parse(open(name).read(), name)'
  const said = spawnSync('python3', ['-c', check, ...files.map((name) => `scripts/gpu/${name}`)], { encoding: 'utf8' })
  expect(said).toMatchObject({ status: 0, stderr: '' })
})

describe("PyTorch's table", () => {
  const MODES = ['eager', 'default', 'reduce-overhead', 'max-autotune']
  const HERE = 'nvidia-h200-580.65.06.jsonl'
  /** A PyTorch that measures nothing: `measure` of torch_peer.py ends with this line's exception, or not at all. */
  const torch = (line) => writeFileSync(path.join(dir, 'torch.py'), `import os, subprocess, sys, time\n${line}\n`)
  const args = ['scripts/gpu/torch_peer.py', '--table']
  const more = (seconds) =>
    env({
      PYTHONPATH: dir,
      PYTHONDONTWRITEBYTECODE: '1',
      EFFNET_REHEARSE: '1',
      EFFNET_STAGE_END: String(Date.now() / 1e3 + seconds),
    })
  const table = (seconds, ...given) => {
    const { status, stdout } = spawnSync('python3', [...args, ...given], { env: more(seconds), encoding: 'utf8' })
    return { status, said: stdout.trimEnd().split('\n').at(-1) }
  }
  const kept = () =>
    Object.fromEntries(
      readdirSync(log('peers'))
        .sort()
        .map((name) => [name, rowsOf(readFileSync(log(`peers/${name}`), 'utf8'))]),
    )
  const call = (more) =>
    writeFileSync(log('call.json'), JSON.stringify({ ...CALL, gpu: 'NVIDIA H200', driver: '580.65.06', cuda: 13000, ...more }))
  const hang = () =>
    torch(`
with open('${path.join(dir, 'pid')}', 'w') as file: file.write(str(subprocess.Popen(['sleep', '300']).pid))
time.sleep(300)`)
  /** In the state that the system tells, or gone. */
  const runs = (pid) => {
    const { stdout } = spawnSync('ps', ['-o', 'stat=', '-p', pid], { encoding: 'utf8' })
    return stdout.trim() !== '' && !stdout.trim().startsWith('Z')
  }
  const ended = async (pid) => {
    for (let i = 0; i < 50 && runs(pid); i++) await sleep(100)
    return !runs(pid)
  }

  it('has every mode of every case, each in its file at once, behind an anchor', { timeout: 120_000 }, () => {
    call({})
    torch("raise RuntimeError('no ' + os.environ['EFFNET_GPU_CHECK_DATE'])")
    const { status, said } = table(100, '--from', '12')
    expect({ status, said }).toEqual({ status: 1, said: '8 of 8 modes of 2 cases, 8 failed' })
    const files = kept()
    expect(Object.keys(files)).toEqual([`12-${HERE}`, `13-${HERE}`, 'anchor-2026-11-21T100000Z.jsonl'])
    expect(files[`12-${HERE}`].map(({ compile }) => compile)).toEqual(MODES)
    expect(files[`13-${HERE}`][0]).toMatchObject({
      error: `RuntimeError: no ${CALL.date}`,
      call: { ...CALL, driver: '580.65.06' },
    })
  })
  it('goes on with what no earlier call has measured on such a machine, what failed there last', { timeout: 120_000 }, () => {
    call({})
    mkdirSync(log('peers'))
    const row = (name, compile, more) => {
      const line = JSON.stringify({ call: { ...CALL, date: 'before' }, compile, images_per_s: 1, ...more })
      writeFileSync(log(`peers/${name}`), `${line}\n`, { flag: 'a' })
    }
    const failed = { images_per_s: undefined, error: 'then' }
    row(`12-${HERE}`, 'eager')
    row(`12-${HERE}`, 'default', failed)
    row(`12-${HERE}`, 'default') // in a third call
    row(`12-${HERE}`, 'reduce-overhead', failed)
    row('13-nvidia-h200-580.95.05.jsonl', 'eager')
    torch("raise RuntimeError('now')")
    expect(table(100, '--from', '12')).toEqual({ status: 1, said: '8 of 8 modes of 2 cases, 6 failed' })
    const said = Object.values(kept()).map((rows) => rows.map(({ compile, error }) => `${compile} ${error ?? 1}`))
    expect(said).toEqual([
      [
        'eager 1',
        'default then',
        'default 1',
        'reduce-overhead then',
        'max-autotune RuntimeError: now',
        'reduce-overhead RuntimeError: now',
      ],
      MODES.map((mode) => `${mode} RuntimeError: now`),
      ['eager 1'], // on another driver: kept, and nothing here goes on from it
      ['eager RuntimeError: now'],
    ])
  })
  /** Which process each mode of case 13 was tried in, counted from the anchor's, and what it came to. */
  const tried = (line) => {
    call({})
    const processes = path.join(dir, 'processes')
    torch(`
if '--table' not in sys.argv and os.environ.get('seen') is None:
    os.environ['seen'] = '1'
    with open('${processes}', 'a') as file: file.write('+')
count = os.path.getsize('${processes}')
class OutOfMemoryError(RuntimeError): pass
${line}`)
    const { status } = table(100, '--from', '13')
    return { status, said: kept()[`13-${HERE}`].map(({ compile, error }) => `${compile}: ${error}`) }
  }
  it('takes a mode that ends its process for failed, and goes on behind it', { timeout: 120_000 }, () => {
    const line = "if count == 3: os._exit(3)\nif count == 4: os.kill(os.getpid(), 9)\nraise RuntimeError(f'in process {count}')"
    expect(tried(line)).toEqual({
      status: 1,
      said: [
        'eager: RuntimeError: in process 2',
        'default: its process ended with 3',
        'reduce-overhead: its process was ended by signal 9',
        'max-autotune: RuntimeError: in process 5',
      ],
    })
  })
  it('tries the next mode in a new process, unless it was memory that failed', { timeout: 120_000 }, () => {
    const line = "raise OutOfMemoryError(f'{400 * chr(46)}{count}') if count < 3 else RuntimeError(f'in process {count}')"
    expect(tried(line).said).toEqual(MODES.map((mode) => `${mode}: OutOfMemoryError: ${'.'.repeat(299)}2`))
    rmSync(log('peers'), { recursive: true })
    expect(tried(line).said).toEqual(MODES.map((mode, i) => `${mode}: RuntimeError: in process ${4 + i}`))
  })
  it('is partial where modes are left, and leaves nothing running that hangs', { timeout: 120_000 }, async () => {
    call({})
    hang()
    expect(table(4, '--from', '13')).toEqual({ status: 76, said: '0 of 4 modes of 1 cases, 0 failed; a later call goes on' })
    expect(await ended(readFileSync(path.join(dir, 'pid'), 'utf8'))).toBe(true)
  })
  it('leaves nothing running where it is stopped', { timeout: 120_000 }, async () => {
    call({})
    hang()
    const stopped = spawn('python3', [...args, '--from', '13'], { env: more(100), stdio: 'ignore' })
    const code = new Promise((resolve) => stopped.on('exit', resolve))
    const file = path.join(dir, 'pid')
    for (let i = 0; i < 200 && !(existsSync(file) && readFileSync(file, 'utf8')); i++) await sleep(100)
    const pid = readFileSync(file, 'utf8')
    expect(runs(pid)).toBe(true)
    stopped.kill()
    expect(await code).toBe(143)
    expect(await ended(pid)).toBe(true)
  })
})
