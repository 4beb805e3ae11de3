/**
 * Which kernels a GPU's ops get where there are several. What was measured is kept on disk, a file for each machine and plan, and in
 * checkpoints, so that a run that goes on computes the same bits.
 */
import { createHash } from 'node:crypto'
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { binding, type ExecutableHandle, type KernelChoices, type Tuning, type TuningReport } from '../binding.js'
import { EffnetError } from '../errors.js'
import { packageVersion } from '../version.js'
import { cudaVariable } from './cuda_variables.js'

const FORMAT = 'effnet-kernels'
/** Those that have kernels for ops. */
const KERNEL_LIBRARIES: ReadonlySet<string> = new Set(['cuBLASLt', 'cuDNN'])

/** With an equal one a choice means the same kernel. */
export interface TuningMachine {
  package: string
  gpu: string
  computeCapability: number
  /** Newest CUDA that it knows. */
  driver: number
  /** Its release; "" where nothing tells. */
  driverRelease: string
  /** Versions by name, of those that are there. */
  libraries: Record<string, string>
}

/** As a checkpoint has it. */
export interface KernelState {
  machine: TuningMachine
  choices: KernelChoices
}

export type Warn = (code: string, message: string, hint?: string) => void

/** Ops that have several kernels are measured: once for each plan, and not at all where it is known what came of it. */
export interface Measuring {
  /** The plan's name, e.g. "efficientnet_b0 train 32x224". */
  plan: string
  /** Those of one shape are measured once. */
  ops: number
  /** That it took; absent when it begins. */
  seconds?: number
}

/** By EFFNET_CUDA_TUNE. `table`: no measuring, and nothing that is kept counts. `again`: what is kept does not count, and is replaced. */
const MODES = { '': 'measure', '0': 'table', '1': 'measure', again: 'again' } as const
type Mode = (typeof MODES)[keyof typeof MODES]

/** Where the package keeps what can be made again: EFFNET_CACHE_DIR, else `effnet-native` in XDG_CACHE_HOME or ~/.cache. */
export function cacheFolder(env: NodeJS.ProcessEnv = process.env): string {
  const { EFFNET_CACHE_DIR: own, XDG_CACHE_HOME: xdg } = env
  return own
    ? path.resolve(own)
    : path.join(xdg && path.isAbsolute(xdg) ? xdg : path.join(os.homedir(), '.cache'), 'effnet-native')
}

const isChoices = (value: unknown): value is KernelChoices =>
  typeof value === 'object' && value !== null && Object.values(value).every((choice) => typeof choice === 'string')

const sameMachine = (a: TuningMachine, b: TuningMachine): boolean => JSON.stringify(a) === JSON.stringify(b)

/** By name, those of `libraries` too. */
export const machineFacts = ({ libraries, ...rest }: Partial<TuningMachine>): Record<string, string> =>
  Object.fromEntries(Object.entries({ ...rest, ...libraries }).map(([key, value]) => [key, String(value)]))

async function machineOf(device: string): Promise<TuningMachine> {
  const { driverVersion, driverRelease, gpus, libraries } = await binding().cudaInfo()
  const gpu = gpus[Number(device.split(':')[1] ?? 0)]
  const found = libraries
    .filter((library) => library.version !== '' && KERNEL_LIBRARIES.has(library.name))
    .map(({ name, version }) => [name, version] as const)
  return {
    package: packageVersion(),
    gpu: gpu?.name ?? '',
    computeCapability: gpu?.computeCapability ?? 0,
    driver: driverVersion,
    driverRelease,
    libraries: Object.fromEntries(found.sort(([a], [b]) => a.localeCompare(b))),
  }
}

/** The choices of one model on a GPU. */
export class KernelTuning {
  /** Who hears of what could not be kept or used. */
  onWarning: Warn | undefined
  /** Who hears of measuring, when it begins and when it has ended. */
  onMeasuring: ((event: Measuring) => void) | undefined
  /** Of a checkpoint. */
  private resumed: KernelChoices = {}
  /** In force in some plan. */
  private chosen: KernelChoices = {}
  private warned = false

  private constructor(
    readonly machine: TuningMachine,
    private readonly mode: Mode,
  ) {}

  /** For "cuda:N". @throws EFF_CONFIG_VALUE for an EFFNET_CUDA_TUNE that there is not */
  static async open(device: string): Promise<KernelTuning> {
    const mode = MODES[cudaVariable('EFFNET_CUDA_TUNE')]
    return new KernelTuning(await machineOf(device), mode)
  }

  /** For a checkpoint; null where no op has been measured. */
  get state(): KernelState | null {
    return Object.keys(this.chosen).length > 0 ? { machine: this.machine, choices: this.chosen } : null
  }

  /** What a checkpoint's run had: plans that are bound from now on have it too, unless kernels come by a table (`table`, as in `request`). */
  resume(state: KernelState | null | undefined, table = false): void {
    if (!state || !isChoices(state.choices)) return
    if (table || this.mode !== 'measure') {
      const why = table
        ? 'deterministic takes those of a table'
        : this.mode === 'table'
          ? 'EFFNET_CUDA_TUNE=0 takes those of a table'
          : 'EFFNET_CUDA_TUNE=again measures them again'
      this.tell(
        'resume-kernels',
        `the run's kernels were measured, ${why}: results will not be bit-identical to an uninterrupted run`,
      )
      return
    }
    if (sameMachine(state.machine, this.machine)) {
      this.resumed = state.choices
      return
    }
    const then = machineFacts(state.machine)
    const others = Object.entries(machineFacts(this.machine)).filter(([key, value]) => then[key] !== value)
    const list = others.map(([key, value]) => `${key} was ${then[key] ?? 'absent'} and is ${value}`)
    this.tell(
      'resume-kernels',
      `${list.join(', ') || 'libraries changed'}: the run's kernels are measured again; results will not be bit-identical to an uninterrupted run`,
    )
  }

  /** How the plan of that hash is to be bound. `table`: as for a run that must not depend on what is measured. */
  async request(planHash: string, table: boolean): Promise<Tuning> {
    if (table || this.mode === 'table') return { measure: false, choices: {} }
    if (this.mode === 'again') return { measure: true, choices: this.chosen }
    return { measure: true, choices: { ...(await this.read(planHash)), ...this.chosen, ...this.resumed } }
  }

  /** Binds a plan by `bind`. `table`: as in `request`. */
  async bind(
    { plan, hash, table }: { plan: string; hash: string; table: boolean },
    bind: (how: Tuning) => Promise<ExecutableHandle>,
  ): Promise<ExecutableHandle> {
    const begun = { ops: 0, at: 0 }
    const begins = (ops: number): void => {
      Object.assign(begun, { ops, at: performance.now() })
      this.onMeasuring?.({ plan, ops })
    }
    const asked = await this.request(hash, table)
    const bound = await bind({ ...asked, begins }).catch((cause: unknown) => {
      // What was measured where there was more memory; the table's kernels take the least.
      const kept = Object.keys(asked.choices).length > 0
      if (!kept || !(cause instanceof EffnetError) || cause.code !== 'EFF_OOM') throw cause
      return bind({ measure: false, choices: {} }).then((executable) => {
        this.tell(
          'kernels',
          `${plan}: the kernels that were measured need more memory than there is now; those of a table are taken, with which results are not the same bits`,
        )
        return executable
      })
    })
    const { ops } = begun
    if (ops > 0) this.onMeasuring?.({ plan, ops, seconds: (performance.now() - begun.at) / 1e3 })
    await this.settle(hash, binding().tuning(bound), ops)
    return bound
  }

  /** What came of it. */
  async settle(planHash: string, { choices, measured, refused }: TuningReport, toMeasure: number): Promise<void> {
    if (refused > 0) {
      this.tell('kernels', `${refused} kernels that were kept cannot be had here now: others were measured and taken`)
    }
    this.chosen = { ...this.chosen, ...choices }
    // Some were not for want of memory: the next start may have it.
    if (measured > 0 && measured === toMeasure) await this.write(planHash, choices)
  }

  private file(planHash: string): string {
    const key = createHash('sha256').update(JSON.stringify(this.machine)).update(planHash).digest('hex')
    return path.join(cacheFolder(), 'kernels', `${key.slice(0, 32)}.json`)
  }

  private async read(planHash: string): Promise<KernelChoices> {
    const file = this.file(planHash)
    let why: string
    try {
      const kept = JSON.parse(await readFile(file, 'utf8')) as {
        format: unknown
        machine: TuningMachine
        plan: unknown
        choices: unknown
      }
      const whole = kept.format === FORMAT && kept.plan === planHash && sameMachine(kept.machine, this.machine)
      if (whole && isChoices(kept.choices)) return kept.choices
      why = 'it is not what was written'
    } catch (cause) {
      const { code, message } = cause as NodeJS.ErrnoException
      if (code === 'ENOENT' || code === 'ENOTDIR') return {}
      why = message
    }
    this.warnOnce(`${file}: damaged (${why}); kernels are measured again`)
    return {}
  }

  private async write(planHash: string, choices: KernelChoices): Promise<void> {
    const file = this.file(planHash)
    const temporary = `${file}.${process.pid}.${Math.random().toString(36).slice(2)}`
    try {
      await mkdir(path.dirname(file), { recursive: true })
      await writeFile(
        temporary,
        `${JSON.stringify({ format: FORMAT, machine: this.machine, plan: planHash, choices }, null, 2)}\n`,
      )
      await rename(temporary, file)
    } catch (cause) {
      await rm(temporary, { force: true }).catch(() => undefined)
      this.warnOnce(
        `${file}: not written (${(cause as Error).message}); the next start measures kernels again. EFFNET_CACHE_DIR names another folder`,
      )
    }
  }

  private tell(code: string, message: string): void {
    this.onWarning?.(code, message)
  }

  private warnOnce(message: string): void {
    if (!this.warned) this.tell('kernel-cache', message)
    this.warned = true
  }
}
