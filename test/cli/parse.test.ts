/** Words to values: options, their schema, the environment, suggestions, help. Nothing here needs the engine. */
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { describe, expect, it } from 'vitest'
import { mendOfDevice } from '../../ts/cli/main.js'
import { defineOptions, ENGINE, parseWords } from '../../ts/cli/options.js'
import { validate } from '../../ts/cli/schema.js'
import { TRAIN } from '../../ts/cli/train_options.js'
import { nearest } from '../../ts/nearest.js'
import { effnet } from './helpers/capture.js'

const table = defineOptions({
  lr: { kind: 'number', value: 'X', min: 0, above: true, help: 'rate' },
  steps: { kind: 'int', value: 'N', min: 1, max: 9, help: 'steps' },
  resume: { kind: 'text', value: 'PATH', optional: true, help: 'go on' },
  out: { kind: 'text', value: 'DIR', help: 'folder' },
  ...ENGINE,
})

const read = (words: string[], env: Record<string, string> = {}) => {
  const parsed = parseWords(words, 'train', table, env)
  return { ...validate(table, parsed.raw), args: parsed.positional, verbosity: parsed.verbosity }
}

describe('options', () => {
  it('takes --name value and --name=value', () => {
    expect(read(['--lr', '1e-3', '--steps=4'])).toMatchObject({ lr: 1e-3, steps: 4 })
  })

  it('leaves out what is not given and has false flags', () => {
    expect(read([])).toMatchObject({ lr: undefined, deterministic: false, verbosity: 0, args: [] })
  })

  it('--grace is no more than a timer takes', () => {
    const grace = (seconds: string) => validate(TRAIN, parseWords(['--grace', seconds], 'train', TRAIN, {}).raw).grace
    expect(grace('86400')).toBe(86_400)
    expect(() => grace('2147484')).toThrow(expect.objectContaining({ code: 'EFF_CONFIG_VALUE' }))
  })

  it('--resume stands alone, before another option, and with a path', () => {
    expect(read(['--resume']).resume).toBe('')
    expect(read(['--resume', '--lr', '1']).resume).toBe('')
    expect(read(['--resume', 'runs/a']).resume).toBe('runs/a')
    expect(read([]).resume).toBeUndefined()
  })

  it('counts -v', () => {
    expect(read(['-v']).verbosity).toBe(1)
    expect(read(['-vv']).verbosity).toBe(2)
    expect(read(['--verbose']).verbosity).toBe(1)
  })

  it('keeps words that are no options in order', () => {
    expect(read(['a', '--lr', '1', 'b', '--', '--c']).args).toEqual(['a', 'b', '--c'])
  })

  it.each(['fp32', '32', '32-true', 'FP32'])('precision %s is fp32', (name) => {
    expect(read(['--precision', name]).precision).toBe('fp32')
  })

  it.each(['fp16-mixed', '16', '16-mixed', 'fp16'])('precision %s is fp16-mixed', (name) => {
    expect(read(['--precision', name]).precision).toBe('fp16-mixed')
  })

  it.each(['bf16-mixed', 'bf16'])('precision %s is bf16-mixed', (name) => {
    expect(read(['--precision', name]).precision).toBe('bf16-mixed')
  })

  it.each([
    [['--lr', 'abc'], /--lr: 'abc'/, /number above 0/],
    [['--lr', '0'], /--lr: '0'/, /number above 0/],
    [['--lr', '-1'], /--lr: '-1'/, /number above 0/],
    [['--lr', 'Infinity'], /'Infinity'/, /number above 0/],
    [['--lr', '0x10'], /'0x10'/, /number above 0/],
    [['--lr', ''], /--lr: ''/, /number above 0/],
    [['--steps', '1.5'], /--steps: '1.5'/, /whole number from 1 to 9/],
    [['--steps', '10'], /--steps: '10'/, /whole number from 1 to 9/],
    [['--out', ''], /--out: ''/, /not be empty/],
    [['--precision', 'fp8'], /--precision: 'fp8'/, /fp32, tf32, fp16-mixed, bf16-mixed/],
    [['--threads', '0'], /--threads: '0'/, /from 1/],
  ])('%j is EFF_CONFIG_VALUE with the accepted form', (words, message, hint) => {
    expect(() => read(words)).toThrow(
      expect.objectContaining({
        code: 'EFF_CONFIG_VALUE',
        message: expect.stringMatching(message),
        hint: expect.stringMatching(hint),
      }),
    )
  })

  it('an option without its value says what it takes', () => {
    expect(() => read(['--out'])).toThrow(
      expect.objectContaining({ code: 'EFF_CONFIG_VALUE', message: expect.stringContaining('--out needs a value') }),
    )
  })

  it('an unknown option names the nearest with its meaning', () => {
    expect(() => read(['--treads', '2'])).toThrow(
      expect.objectContaining({
        code: 'EFF_CONFIG_KEY',
        message: expect.stringContaining('--treads'),
        hint: expect.stringMatching(/--threads N {3}worker threads/),
      }),
    )
    expect(() => read(['--det=1'])).toThrow(expect.objectContaining({ hint: expect.stringContaining('--deterministic') }))
    expect(() => read(['--zzzzzz'])).toThrow(expect.objectContaining({ hint: expect.stringContaining('--help') }))
  })
})

describe('environment', () => {
  it('gives defaults that the command line overrides', () => {
    const env = { EFFNET_NUM_THREADS: '3', EFFNET_PRECISION: 'bf16', EFFNET_DEVICE: 'cpu', EFFNET_DETERMINISTIC: '1' }
    expect(read([], env)).toMatchObject({ threads: 3, precision: 'bf16-mixed', device: 'cpu', deterministic: true })
    expect(read(['--threads', '1', '--precision', '32'], env)).toMatchObject({ threads: 1, precision: 'fp32' })
  })

  it('EFFNET_NUM_THREADS comes before OMP_NUM_THREADS', () => {
    expect(read([], { OMP_NUM_THREADS: '4' }).threads).toBe(4)
    expect(read([], { OMP_NUM_THREADS: '4', EFFNET_NUM_THREADS: '2' }).threads).toBe(2)
  })

  it('an empty variable counts as absent; 0 switches a flag off', () => {
    expect(read([], { EFFNET_NUM_THREADS: '', EFFNET_DETERMINISTIC: '0' })).toMatchObject({
      threads: undefined,
      deterministic: false,
    })
  })

  it('a wrong value names the variable', () => {
    expect(() => read([], { EFFNET_NUM_THREADS: 'many' })).toThrow(
      expect.objectContaining({ code: 'EFF_CONFIG_VALUE', message: expect.stringContaining('EFFNET_NUM_THREADS') }),
    )
  })
})

describe('suggestions', () => {
  it('come within two edits or as a beginning, nearest first', () => {
    expect(nearest('epoch', ['epochs', 'ema', 'checkpoint'])).toEqual(['epochs'])
    expect(nearest('batch', ['batch-size', 'bench'])).toEqual(['bench', 'batch-size'])
    expect(nearest('lr-peak', ['lr', 'out'])).toEqual([])
    expect(nearest('wieghts', ['weights', 'weight-decay'])).toEqual(['weights'])
    expect(nearest('xy', ['lr'])).toEqual([])
  })
})

describe('help', () => {
  const verbs = ['train', 'eval', 'predict', 'models', 'bench', 'doctor', 'version']

  it.each(verbs)('%s fits a screen and begins with two examples', async (verb) => {
    const { code, stdout, stderr } = await effnet([verb, '--help'])
    // A line of 100 may have been cut there.
    for (const line of stdout.split('\n')) expect([...line].length, line).toBeLessThan(100)
    const lines = stdout.trimEnd().split('\n')
    expect(code).toBe(0)
    expect(stderr).toBe('')
    expect(lines.length).toBeLessThanOrEqual(45)
    expect(lines[0]).toMatch(new RegExp(`^ {2}effnet ${verb}`))
    expect(lines[1]).toMatch(new RegExp(`^ {2}effnet ${verb}`))
  })

  it('names in one line what few need, and tells it in docs/cli.md', async () => {
    const { stdout } = await effnet(['train', '--help'])
    expect(stdout).toMatch(/^ {2}--exit-143-on-sigterm {3}--memory-limit X {3}\(docs\/cli\.md\)$/m)
  })

  it('without a verb lists them all', async () => {
    const { code, stdout } = await effnet(['--help'])
    expect(code).toBe(0)
    for (const verb of verbs) expect(stdout).toMatch(new RegExp(`^ {2}${verb} `, 'm'))
    expect((await effnet(['help', 'eval'])).stdout).toBe((await effnet(['eval', '-h'])).stdout)
  })

  it('names every option of the contract', async () => {
    const { stdout } = await effnet(['train', '--help'])
    const contract =
      'data model weights epochs batch-size image-size optimizer lr schedule warmup-epochs weight-decay label-smoothing crop-scale ' +
      'crop-pct drop-rate drop-path-rate ema precision seed threads deterministic out resume json'
    for (const name of contract.split(' ')) expect(stdout).toMatch(new RegExp(`--${name}\\b`))
    const predict = (await effnet(['predict', '--help'])).stdout
    for (const name of 'model weights checkpoint num-classes precision device threads batch-size top-k logits json'.split(' '))
      expect(predict).toMatch(new RegExp(`--${name}\\b`))
    const bench = (await effnet(['bench', '--help'])).stdout
    for (const name of 'model mode batch-size image-size precision threads device steps data json'.split(' '))
      expect(bench).toMatch(new RegExp(`--${name}\\b`))
  })

  it('is reached without the schema library, the engine or an image library', async () => {
    const root = path.resolve(fileURLToPath(import.meta.url), '../../..')
    const { metafile } = await build({
      absWorkingDir: root,
      entryPoints: ['ts/cli/main.ts'],
      bundle: true,
      format: 'esm',
      platform: 'node',
      packages: 'external',
      write: false,
      metafile: true,
      logLevel: 'silent',
    })
    const reached = new Set<string>()
    const packages = new Set<string>()
    const visit = (file: string): void => {
      if (reached.has(file)) return
      reached.add(file)
      for (const { path: target, kind, external } of metafile.inputs[file]?.imports ?? []) {
        if (kind !== 'import-statement') continue
        if (external) packages.add(target)
        else visit(target)
      }
    }
    for (const entry of ['ts/cli/main.ts', 'ts/cli/train.ts', 'ts/cli/predict.ts', 'ts/cli/eval.ts', 'ts/cli/bench.ts'])
      visit(entry)
    expect([...packages].filter((name) => !name.startsWith('node:'))).toEqual(['commander'])
    expect([...reached].filter((file) => /ts\/(binding|model|runtime|train|data|infer|nn\/index)/.test(file))).toEqual([])
  })
})

describe('variables', () => {
  it('OMP_NUM_THREADS may have a number for each level', () => {
    expect(read([], { OMP_NUM_THREADS: '2,4' }).threads).toBe(2)
    expect(read([], { OMP_NUM_THREADS: '3' }).threads).toBe(3)
    expect(() => read([], { EFFNET_NUM_THREADS: '2,4' })).toThrow(/EFFNET_NUM_THREADS: '2,4'/)
  })

  it.each([
    [
      'EFFNET_DEVICE',
      'tpu',
      64,
      /^EFF_CONFIG_VALUE {2}EFFNET_DEVICE=tpu: no device "tpu"\n {2}Mend: EFFNET_DEVICE=cpu, or --device cpu$/m,
    ],
    ['EFFNET_BACKEND', 'cuda', 69, /^EFF_BACKEND_MISSING {2}EFFNET_BACKEND=cuda: .*\n {2}Mend: EFFNET_BACKEND=cpu/m],
  ])('a wrong %s is named', async (name, value, exit, says) => {
    const { code, stderr } = await effnet(['predict', 'x.jpg'], { env: { [name]: value } })
    expect(stderr).toMatch(says)
    expect(code).toBe(exit)
  })

  it.each([
    ["'cpu', 'cuda' or 'cuda:1'", 'EFFNET_DEVICE=cpu, or --device cpu'],
    [
      "in a checkout: npm run setup -- --cuda; or device 'cpu'",
      'in a checkout: npm run setup -- --cuda; or EFFNET_DEVICE=cpu, or --device cpu',
    ],
    ['end the processes that hold it', 'end the processes that hold it; or EFFNET_DEVICE=cpu, or --device cpu'],
    [undefined, 'EFFNET_DEVICE=cpu, or --device cpu'],
  ])('the mend of a device that cannot be had stays: %s', (hint, mend) => {
    expect(mendOfDevice(hint, 'EFFNET_DEVICE')).toBe(mend)
  })

  it('a device that the environment names is not looked for where none is used', async () => {
    const { code, stderr } = await effnet(['bench', '--mode', 'data', '--data', '/no/such/folder'], {
      env: { EFFNET_DEVICE: 'tpu' },
    })
    expect(stderr).not.toContain('tpu')
    expect(code).toBe(66)
  })
})
