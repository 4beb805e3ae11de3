import type { Peaks, StepInput } from '../binding.js'
import { EffnetError } from '../errors.js'
import type { DeviceMemoryUse, EvalPlan, TrainPlan } from '../runtime/session.js'
import { type Call, defineVerb } from './call.js'
import { EXIT } from './exit.js'
import { checkDeviceOption, DEFAULT_MODEL, engineOptions, headerLine, tellOfMachine } from './model_source.js'
import { defineOptions, ENGINE, flagOf, OPTIMIZER } from './options.js'
import { groupKernels, profileObject, profileOf, profileTables } from './profile.js'
import { compact, grouped, mebibytes, type Ui } from './ui.js'

const BENCH = defineOptions({
  mode: { kind: 'choice', value: 'M', choices: ['infer', 'train', 'data'], shown: 'infer', help: 'infer, train or data' },
  model: { kind: 'text', value: 'NAME', shown: 'tf_efficientnet_b0', help: 'model name (effnet models list)' },
  data: { kind: 'text', value: 'DIR', help: '--mode data: folder with train/, or the folder of classes itself' },
  batchSize: { kind: 'int', value: 'N', min: 1, max: 65_536, shown: '1; train, data: 32', help: 'images a step' },
  imageSize: { kind: 'int', value: 'N', min: 32, max: 4096, shown: 'the model’s', help: 'side in pixels' },
  steps: { kind: 'int', value: 'N', min: 1, max: 1_000_000, shown: '10 s, at least 5', help: 'steps that are timed' },
  warmup: { kind: 'int', value: 'N', min: 0, max: 100_000, shown: '3', help: 'steps before them' },
  profile: { kind: 'flag', help: 'time, rates and share of the floor of every op, by what it loses' },
  optimizer: { ...OPTIMIZER, shown: 'adamw' },
  workers: { kind: 'int', value: 'N', min: 1, max: 256, shown: 'usable CPUs', help: '--mode data: decoding threads' },
  seed: {
    kind: 'int',
    value: 'S',
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    env: ['EFFNET_SEED'],
    shown: '0',
    help: 'of weights and pixels',
  },
  ...ENGINE,
})
type BenchCall = Call<typeof BENCH>

type Mode = 'infer' | 'train' | 'data'
const MODEL_MODES: readonly Mode[] = ['infer', 'train']
const modeOf = ({ mode = 'infer' }: { mode?: Mode | undefined }): Mode => mode
/** Of options that not every mode reads, those that do. */
const ONLY_IN: { readonly [K in keyof typeof BENCH]?: readonly Mode[] } = {
  model: MODEL_MODES,
  profile: MODEL_MODES,
  precision: MODEL_MODES,
  device: MODEL_MODES,
  deterministic: MODEL_MODES,
  memoryLimit: MODEL_MODES,
  optimizer: ['train'],
  data: ['data'],
  workers: ['data'],
}

/** What was asked for and would change nothing is a mistake. @throws EFF_CONFIG_VALUE */
function checkMode(mode: Mode, { given, options }: BenchCall): void {
  const reads = (key: string, modes: readonly Mode[]): boolean =>
    modes.includes(mode) || (key === 'device' && options.device === 'cpu')
  const none = Object.entries(ONLY_IN).filter(([key, modes]) => given.has(key as keyof typeof BENCH) && !reads(key, modes))
  if (none.length === 0) return
  const flags = none.map(([key]) => flagOf(key))
  const measures =
    mode === 'data' ? "measures the CPU's pipeline" : mode === 'train' ? 'times steps of training' : 'times inference'
  const kin = new Map<string, string[]>()
  for (const [key, modes] of none) kin.set(modes.join(' and '), [...(kin.get(modes.join(' and ')) ?? []), flagOf(key)])
  const owners = [...kin].map(([modes, of]) => `${of.join(', ')} ${of.length > 1 ? 'are' : 'is'} of --mode ${modes}`)
  throw new EffnetError(
    'EFF_CONFIG_VALUE',
    `effnet bench --mode ${mode} ${measures}; ${flags.join(', ')} ${flags.length > 1 ? 'are' : 'is'} none of it`,
    {
      hint:
        flags.includes('--device') || flags.includes('--memory-limit')
          ? `leave ${flags.join(', ')} out; what a GPU decodes is seen in effnet train --data-backend gpu`
          : `leave ${flags.join(', ')} out; ${owners.join(', ')}`,
      details: { mode, options: flags },
    },
  )
}

const TARGET_MS = 10_000
const LEAST_STEPS = 5
const PROFILED_STEPS = 5
const TOP_KERNELS = 15
const KERNEL_WIDTH = 48

export interface Latency {
  mean: number
  p50: number
  p90: number
  p95: number
  p99: number
}

/** Mean and nearest-rank percentiles of durations in ms. */
function latencyOf(ms: readonly number[]): Latency {
  const sorted = [...ms].sort((a, b) => a - b)
  const rank = (p: number): number => sorted[Math.max(0, Math.ceil((p / 100) * sorted.length) - 1)] ?? Number.NaN
  const mean = sorted.reduce((sum, x) => sum + x, 0) / sorted.length
  return { mean, p50: rank(50), p90: rank(90), p95: rank(95), p99: rank(99) }
}

/** Runs `step` until `steps` are timed, or for ten seconds and five steps where no number is asked for. */
async function timeSteps(step: () => Promise<unknown>, warmup: number, steps: number | undefined, ui: Ui): Promise<number[]> {
  for (let i = 0; i < warmup; i++) await step()
  const times: number[] = []
  let total = 0
  while (steps === undefined ? times.length < LEAST_STEPS || total < TARGET_MS : times.length < steps) {
    const start = performance.now()
    await step()
    const ms = performance.now() - start
    times.push(ms)
    total += ms
    ui.progress(() => [
      { text: `step ${times.length}${steps ? `/${steps}` : ''}  ${(total / times.length).toFixed(2)} ms`, rank: 0 },
    ])
  }
  return times
}

/** Pixels that differ between runs of the program only by the seed (xorshift32). */
function randomPixels(bytes: number, seed: number): Uint8Array {
  const pixels = new Uint8Array(bytes)
  let x = (seed ^ 0x9e3779b9) >>> 0 || 1
  for (let i = 0; i < bytes; i++) {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    pixels[i] = x & 0xff
  }
  return pixels
}

export interface KernelRow {
  /** Of the op in the graph. */
  name?: string
  op: string
  kernel: string
  shapes: string
  /** Per step. */
  ms: number
  bytes: number
  flops: number
  /** As `DumpRow` has them. */
  place?: string
  life?: string
}

function kernelTable(ui: Ui, rows: readonly KernelRow[]): void {
  const groups = groupKernels(rows)
  const total = groups.reduce((sum, g) => sum + g.ms, 0)
  const rate = (amount: number, ms: number): string => (ms > 0 ? (amount / ms / 1e6).toFixed(1) : '-')
  ui.line()
  ui.table(
    [
      { title: 'op' },
      { title: 'kernel' },
      { title: 'n', align: 'right' },
      { title: 'ms', align: 'right' },
      { title: '%', align: 'right' },
      { title: 'GF/s', align: 'right' },
      { title: 'GB/s', align: 'right' },
    ],
    groups
      .slice(0, TOP_KERNELS)
      .map((g) => [
        g.op,
        g.kernel.length > KERNEL_WIDTH ? `${g.kernel.slice(0, KERNEL_WIDTH - 1)}…` : g.kernel,
        String(g.count),
        g.ms.toFixed(3),
        ((100 * g.ms) / total).toFixed(1),
        g.flops > 0 ? rate(g.flops, g.ms) : '-',
        rate(g.bytes, g.ms),
      ]),
  )
  const more = groups.length - TOP_KERNELS
  if (more > 0) ui.line(ui.paint.dim(`and ${more} more; --json has all`))
}

interface Measured {
  times: number[]
  rows: KernelRow[]
  arenaBytes: number
  peaks?: Peaks
  /** Of a GPU. */
  device?: DeviceMemoryUse
}

/** Times the steps of a plan, then measures its kernels in a few more. */
async function measure(
  plan: { profile(on: boolean): void; dump(): (KernelRow & { name: string })[]; readonly arenaBytes: readonly number[] },
  step: () => Promise<unknown>,
  { options: o, ui }: BenchCall,
): Promise<Measured> {
  const times = await timeSteps(step, o.warmup ?? 3, o.steps, ui)
  plan.profile(true)
  for (let i = 0; i < PROFILED_STEPS; i++) await step()
  plan.profile(false)
  const rows = plan.dump().filter((row) => row.ms > 0)
  return { times, rows, arenaBytes: plan.arenaBytes.reduce((sum, n) => sum + n, 0) }
}

async function benchModel(call: BenchCall, mode: Exclude<Mode, 'data'>): Promise<void> {
  const { options: o, ui } = call
  const name = o.model ?? DEFAULT_MODEL
  const { getModelConfig } = await import('../nn/index.js')
  getModelConfig(name)
  ui.line(await headerLine(o, ui))
  const [{ createModel }, { repeated }] = await Promise.all([import('../model.js'), import('../runtime/repeat.js')])
  const model = await createModel(name, {
    ...engineOptions(o),
    ...(o.imageSize === undefined ? {} : { imageSize: o.imageSize }),
    ...(o.seed === undefined ? {} : { seed: o.seed }),
  })
  tellOfMachine(model, ui)
  try {
    const { config, session } = model
    const imageSize = o.imageSize ?? (mode === 'train' ? config.imageSize : config.evalSize)
    const batchSize = o.batchSize ?? (mode === 'train' ? 32 : 1)
    ui.line(`bench  ${config.name} @${imageSize} · ${mode} · batch ${batchSize}`)
    // Only once a plan of this size was found to fit.
    const pixels = (): Uint8Array => randomPixels(batchSize * imageSize * imageSize * 3, o.seed ?? 0)
    const labels = Int32Array.from({ length: batchSize }, (_, i) => i % config.numClasses)
    const inputOf = (plan: EvalPlan | TrainPlan): StepInput =>
      plan.packInput(pixels(), labels, session.inputMemory(plan.inputLayout.bytes))
    // Of one image: how long it takes, its way to the device included.
    const steps = <T>(plan: EvalPlan | TrainPlan, input: StepInput, once: () => Promise<T>): (() => Promise<T>) =>
      session.stagesAhead && batchSize > 1 ? repeated(plan, input, once) : once
    let measured: Measured
    if (mode === 'infer') {
      const plan = await session.evalPlan({ batchSize, imageSize })
      const input = inputOf(plan)
      measured = await measure(
        plan,
        steps(plan, input, () => plan.run(input)),
        call,
      )
    } else {
      const optimizer = { name: o.optimizer ?? 'adamw' } as const
      const off = { dropRate: 0, dropPathRate: 0, ema: false, clip: false }
      const plan = await session.trainPlan({ batchSize, imageSize, optimizer, labelSmoothing: 0.1, ...off })
      const input = inputOf(plan)
      const scalars = { lr: 1e-4, seed: o.seed ?? 0, weight_decay: 0.01, momentum: 0.9, alpha: 0.999, eps: 1e-8 }
      let step = 0
      const once = () => plan.step(input, { ...scalars, step, optimizer_step: ++step })
      measured = await measure(plan, steps(plan, input, once), call)
    }
    const device = session.deviceMemoryUse()
    if (device) measured.device = device
    if (o.profile) measured.peaks = await session.measurePeaks()
    report(ui, measured, batchSize)
  } finally {
    await model.close()
  }
}

function report(ui: Ui, { times, rows, arenaBytes, peaks, device }: Measured, batchSize: number): void {
  const profile = peaks && profileOf(rows, peaks)
  const latency = latencyOf(times)
  const imagesPerS = (1e3 * batchSize) / latency.mean
  const peak = process.resourceUsage().maxRSS * 1024
  ui.object({
    images_per_s: imagesPerS,
    latency_ms: latency,
    peak_bytes: peak,
    arena_bytes: arenaBytes,
    ...(device && { gpu_bytes: { model: device.model, in_use: device.inUse, total: device.total } }),
    steps: times.length,
    kernels: rows.map(({ op, kernel, ms, bytes, flops }) => ({ op, kernel, ms, bytes, flops })),
    ...(profile && profileObject(profile)),
  })
  if (ui.json) return
  ui.answer(`speed  ${compact(imagesPerS)} img/s over ${times.length} steps`)
  const { mean, p50, p90, p95, p99 } = latency
  const parts = Object.entries({ mean, p50, p90, p95, p99 }).map(([k, v]) => `${k} ${v.toFixed(2)}`)
  ui.answer(`step   ${parts.join(' · ')} ms`)
  if (device) {
    ui.answer(`memory ${mebibytes(peak)} peak of the process on the host`)
    ui.answer(
      `gpu    ${mebibytes(device.model)} of the model, ${mebibytes(arenaBytes)} of it in arenas; ${mebibytes(device.inUse)} of ${mebibytes(device.total)} in use, others' too`,
    )
  } else {
    ui.answer(`memory ${mebibytes(peak)} peak of the process, ${mebibytes(arenaBytes)} in arenas`)
  }
  if (profile) profileTables(ui, profile)
  else kernelTable(ui, rows)
}

async function benchData({ options: o, ui }: BenchCall): Promise<void> {
  if (o.data === undefined) {
    throw new EffnetError('EFF_CONFIG_VALUE', 'effnet bench --mode data needs --data', {
      hint: '--data DIR   with train/, or a folder a class',
    })
  }
  // What the environment says of models is not of this.
  ui.line(await headerLine({ ...o, device: 'cpu', precision: undefined }, ui))
  const { imageFolder } = await import('../data/image_folder.js')
  const data = await imageFolder(o.data, { split: 'train' })
  const size = o.imageSize ?? 224
  const batchSize = Math.min(o.batchSize ?? 32, data.length)
  ui.line(`bench  ${data.root} · ${grouped(data.length)} images · crops of ${size} · batch ${batchSize}`)
  const workers = o.workers ?? o.threads
  const loader = data.loader({
    batchSize,
    dropLast: true,
    transform: { mode: 'train', size },
    seed: o.seed ?? 0,
    ...(workers === undefined ? {} : { workers }),
  })
  try {
    let batches = loader.epoch()
    let ofEpoch = 0
    const next = async (): Promise<void> => {
      for (;;) {
        const { done } = await batches.next()
        if (!done) {
          ofEpoch++
          return
        }
        if (ofEpoch === 0) {
          throw new EffnetError('EFF_DATA_EMPTY', `${data.root}: no complete batch of ${batchSize} readable images`, {
            hint: 'replace the images, or a smaller --batch-size',
            details: { badFiles: loader.badFiles },
          })
        }
        ofEpoch = 0
        batches = loader.epoch()
      }
    }
    const times = await timeSteps(next, o.warmup ?? 3, o.steps, ui)
    const imagesPerS = (1e3 * batchSize * times.length) / times.reduce((sum, ms) => sum + ms, 0)
    for (const bad of loader.badFiles) ui.warn(bad.code, `${bad.code}  ${bad.path}: ${bad.message}`)
    ui.warningsLeft()
    ui.object({ images_per_s: imagesPerS, steps: times.length, batch_size: batchSize, bad_files: loader.badFiles.length })
    if (!ui.json) ui.answer(`speed  ${compact(imagesPerS)} img/s decoded, cropped and flipped, over ${times.length} batches`)
    await batches.return?.(undefined)
  } finally {
    loader.close()
  }
}

export const verb = defineVerb(
  {
    name: 'bench',
    summary: 'speed of training, inference or the input pipeline',
    examples: [
      'effnet bench --model efficientnet_b0 --mode train --batch-size 32 --image-size 128',
      'effnet bench --mode train --batch-size 32 --profile',
      'effnet bench --mode data --data photos --image-size 224 --json',
    ],
    options: BENCH,
    usesDevice: (options) => modeOf(options) !== 'data',
  },
  async (call) => {
    const { options: o } = call
    const mode = modeOf(o)
    checkMode(mode, call)
    if (mode === 'data') {
      await benchData(call)
    } else {
      await checkDeviceOption(o.device)
      await benchModel(call, mode)
    }
    return EXIT.ok
  },
)
