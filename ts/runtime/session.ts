/**
 * A model on a device: its weights in native arenas, and the plans compiled for them. Everything here is asynchronous off
 * the event loop except small reads and writes of weights; `close()` frees native memory at once.
 */
import {
  ARENA,
  type BatchHandle,
  binding,
  type DeviceHandle,
  type ExecutableHandle,
  HOST_MEMORY_MEND,
  type LoaderOptions,
  type LossScale,
  type MemoryHandle,
  type NonFinite,
  type Peaks,
  type PoolHandle,
  type StepInput,
} from '../binding.js'
import type { DataBackend } from '../data/types.js'
import { EffnetError } from '../errors.js'
import type { Graph } from '../graph/graph.js'
import { ARENA_COUNT } from '../graph/plan_format.js'
import { elements, type Tensor } from '../graph/types.js'
import { type ModelConfig, modelParams } from '../nn/index.js'
import { type EmitOptions, emit, mayHaveHalfGradient } from '../passes/emit.js'
import type { ImageRegion, OptimizerSpec, Target } from '../passes/index.js'
import { activationBytes, type MemoryPlan, type MemoryRequest, planMemory } from '../passes/plan_memory.js'
import { inTurns } from '../turns.js'
import { checkDataBackend, deviceName, openDevice } from './device.js'
import { type DumpRow, dumpRows } from './dump.js'
import { checkCpuPrecision, checkHalfWeightGradients, FORMATS, type NumberFormat, type SessionPrecision } from './formats.js'
import { availableMemory, memoryBytes } from './memory_limit.js'
import { checkMemory, checkWeights, type Demand, largestTensors, outOfMemory, type Room, weightsError } from './out_of_memory.js'
import { evalProgram, OUTPUTS, type TrainProgramOptions, trainProgram } from './programs.js'
import { packScalars, type StepScalars } from './scalars.js'
import { KernelTuning, type Measuring, type Warn } from './tuning.js'
import { type WeightSlot, type WeightsLayout, weightsLayout } from './weights_layout.js'

export type { SessionPrecision }

export interface SessionOptions {
  config: ModelConfig
  precision: SessionPrecision
  /** Engine threads; default: the CPUs this process may use (affinity and container quota). A GPU has one. */
  threads?: number | undefined
  /** Default `cpu`. */
  device?: string | undefined
  /** Kernels by a table, so that results do not depend on what is fast here and now. Default false; CPUs are always so. */
  deterministic?: boolean | undefined
  /** See `CreateModelOptions`. */
  memoryLimit?: number | string | undefined
}

export interface TrainPlanOptions extends Omit<TrainProgramOptions, 'dtype' | 'gradNorm' | 'optimizer' | 'target'> {
  optimizer: Pick<OptimizerSpec, 'name' | 'nesterov' | 'decays'>
  /** Whether steps clip the gradients to the scalar `clip_norm`. */
  clip: boolean
  /** Whether steps will have several parts; needs room for the sum of their gradients. Default false. */
  accumulates?: boolean
  /** See `TrainerOptions`. */
  halfWeightGradients?: boolean
}

export interface EvalPlanOptions {
  batchSize: number
  imageSize: number
}

export interface StepResult {
  /** Mean over the labelled images. */
  loss: number
  /** Of each image: how many classes scored above the label's; 0 = top-1 hit, below 5 = top-5 hit, -1 = unlabelled. */
  ranks: Int32Array
  /** L2 norm of all gradients before clipping: where the plan clips or the loss is scaled, and on GPUs. */
  gradNorm?: number
}

export interface EvalResult extends StepResult {
  /** [batch, classes], row-major. */
  logits: Float32Array
  /** Pooled head activations [batch, head], row-major. */
  features: Float32Array
}

function* planStages(graph: Graph, request: MemoryRequest, region: ImageRegion | null, options: EmitOptions) {
  const plan = yield* planMemory.parts(graph, request, region)
  return { plan, ...(yield* emit.parts(graph, plan, options)) }
}

const lastChange = new WeakMap<MemoryHandle, Promise<unknown>>()

/** Runs changes of a memory's arenas and bindings to it one after another: the native side refuses a second beside the first. */
function changeMemory<T>(memory: MemoryHandle, change: () => Promise<T>): Promise<T> {
  const turn = (lastChange.get(memory) ?? Promise.resolve()).then(change, change)
  lastChange.set(memory, turn)
  return turn
}

interface Program {
  graph: Graph
  region: ImageRegion | null
}

interface PlanRequest {
  batchSize: number
  program: Program
  /** The same for another batch. */
  programOf(batchSize: number): Promise<Program>
  request: MemoryRequest
  /** See `TrainPlanOptions`. */
  accumulates?: boolean | undefined
  /** Whether kernels keep the gradient of a convolution's result in their scratch. */
  storesGradients?: boolean
}

interface BindingSite {
  pool: PoolHandle
  threads: number
  numbers: EmitOptions
  room(): Promise<Room>
  /** Bytes of an executable beside its arenas. */
  beside(arenaBytes: readonly number[]): number
  /** Of a GPU. */
  tuning: KernelTuning | undefined
  deterministic: boolean
  /** After what may have taken memory of the host. */
  used(): void
}

/** A graph compiled for a session: the plan's bytes, the native executable, and where its outputs lie. */
class Compiled {
  private executable: ExecutableHandle | undefined

  private constructor(
    executable: ExecutableHandle,
    readonly graph: Graph,
    readonly memory: MemoryPlan,
    readonly hash: string,
    readonly arenaBytes: readonly number[],
    private readonly used: () => void,
  ) {
    this.executable = executable
    used()
  }

  static async create(
    { pool, threads, numbers, room, beside, tuning, deterministic, used }: BindingSite,
    memory: MemoryHandle,
    { batchSize, program: { graph, region }, programOf, request, accumulates = false, storesGradients = false }: PlanRequest,
    held: number[],
  ): Promise<Compiled> {
    const native = binding()
    const arenasOf = (plan: MemoryPlan): readonly number[] =>
      plan.arenaBytes.with(ARENA.activations, activationBytes(plan, threads)).with(ARENA.image, 0)
    const { plan, bytes, hash } = await inTurns(planStages(graph, request, region, numbers))
    const arenaBytes = arenasOf(plan)
    const executable = await changeMemory(memory, async () => {
      const heldBefore = [...held]
      const demandFor = (of: Graph, placed: MemoryPlan, batch: number): Demand => {
        const arenas = arenasOf(placed)
        const largest = largestTensors(of, placed)
        return {
          what: of.name,
          batchSize: batch,
          arenaBytes: arenas,
          held: heldBefore,
          beside: (accumulates ? arenas[ARENA.grads]! : 0) + beside(arenas),
          scratch: storesGradients ? (largest[0]?.bytes ?? 0) : 0,
          largest,
        }
      }
      const demandOf = async (batch: number): Promise<Demand> => {
        const other = await programOf(batch)
        return demandFor(other.graph, await inTurns(planMemory.parts(other.graph, request, other.region)), batch)
      }
      const demand = demandFor(graph, plan, batchSize)
      await checkMemory(demand, await room(), demandOf)
      try {
        for (const [arena, size] of arenaBytes.slice(0, ARENA.activations + 1).entries()) {
          if (size <= (held[arena] ?? 0)) continue
          await native.ensureArena(memory, arena, size)
          held[arena] = size
        }
        if (!tuning) return await native.bind(pool, memory, bytes)
        const site = { plan: graph.name, hash, table: deterministic }
        return await tuning.bind(site, (how) => native.bind(pool, memory, bytes, how))
      } catch (cause) {
        // One that has its own mend is not of the memory that a batch takes.
        if (!(cause instanceof EffnetError) || cause.code !== 'EFF_OOM' || cause.hint !== undefined) throw cause
        const left = await room()
        // Arenas that have grown are there for a smaller batch.
        const grown = held.reduce((sum, size, arena) => sum + size - (heldBefore[arena] ?? 0), 0)
        throw await outOfMemory(demand, { ...left, available: left.available + grown }, demandOf, cause)
      }
    })
    return new Compiled(executable, graph, plan, hash, arenaBytes, used)
  }

  get handle(): ExecutableHandle {
    if (!this.executable) throw new EffnetError('EFF_CLOSED', `the plan "${this.graph.name}" has been closed`)
    return this.executable
  }

  /** Of inputs that the device took ahead. Whether it still has one, only the device knows. */
  private readonly tickets = new WeakMap<BatchHandle | Uint8Array, number>()

  async prefetch(input: StepInput): Promise<void> {
    const ticket = await binding().prefetch(this.handle, input)
    if (ticket > 0) this.tickets.set((input.batch ?? input.bytes)!, ticket)
  }

  /** Other bytes lie there now. */
  forget(packed: Uint8Array): void {
    this.tickets.delete(packed)
  }

  async step(input: StepInput, scalars: Partial<StepScalars>): Promise<Uint8Array> {
    const ticket = this.tickets.get((input.batch ?? input.bytes)!)
    const output = await binding().step(this.handle, ticket ? { ...input, ticket } : input, packScalars(scalars))
    this.used()
    return output
  }

  findNonFinite(input: StepInput, scalars: Partial<StepScalars>): Promise<NonFinite | null> {
    return binding().findNonFinite(this.handle, input, packScalars(scalars))
  }

  private tensor(name: string): { tensor: Tensor; offset: number } {
    const tensor = this.graph.find(name)
    return { tensor, offset: this.memory.placements.get(tensor.id)!.offset }
  }

  floats(output: Uint8Array, name: string): Float32Array {
    const { tensor, offset } = this.tensor(name)
    return new Float32Array(output.buffer, output.byteOffset + offset, elements(tensor.shape))
  }

  ints(output: Uint8Array, name: string): Int32Array {
    const { tensor, offset } = this.tensor(name)
    return new Int32Array(output.buffer, output.byteOffset + offset, elements(tensor.shape))
  }

  /** Bytes of the input arena; images at 0, labels at the returned offset. */
  get inputLayout(): { bytes: number; labelsOffset: number } {
    return { bytes: this.memory.arenaBytes[ARENA.input]!, labelsOffset: this.tensor('labels').offset }
  }

  close(): void {
    if (this.executable) binding().closeExecutable(this.executable)
    this.executable = undefined
  }
}

abstract class BoundPlan {
  constructor(
    protected readonly compiled: Compiled,
    readonly batchSize: number,
    readonly imageSize: number,
  ) {}

  /** SHA-256 of the plan. */
  get hash(): string {
    return this.compiled.hash
  }

  /** Bytes of a batch, and where its labels begin (images are at 0). */
  get inputLayout(): { bytes: number; labelsOffset: number } {
    return this.compiled.inputLayout
  }

  /** Bytes of each arena this plan needs, by the numbers of `ARENA`; images of a region in work count as activations. */
  get arenaBytes(): readonly number[] {
    return this.compiled.arenaBytes
  }

  /** The plan and its binding as a table: op, kernel, shapes, bytes, FLOPs, offset, saved or recomputed. */
  dump(): DumpRow[] {
    return dumpRows(this.compiled.graph, this.compiled.memory, binding().dump(this.compiled.handle))
  }

  /** Measures every op from the next step on; `dump()` then has mean milliseconds. */
  profile(on: boolean): void {
    binding().setProfiling(this.compiled.handle, on)
  }

  /** Bytes of a tensor after a step, for tests and debugging. Activations may have been overwritten by later ops. */
  readTensor(name: string): Uint8Array {
    return binding().readTensor(this.compiled.handle, name)
  }

  /** A batch as `step` takes it. `packed`: where it is written, `inputLayout.bytes` bytes (`Session.inputMemory`); default: new memory. */
  packInput(
    images: Uint8Array,
    labels?: ArrayLike<number>,
    packed: Uint8Array = new Uint8Array(this.inputLayout.bytes),
  ): StepInput {
    const { labelsOffset } = this.inputLayout
    const expected = this.batchSize * this.imageSize * this.imageSize * 3
    if (images.length !== expected) {
      throw new EffnetError('EFF_INVALID_ARGUMENT', `images have ${images.length} bytes, the plan takes ${expected}`, {
        hint: `give uint8 pixels [${this.batchSize}, ${this.imageSize}, ${this.imageSize}, 3]`,
      })
    }
    this.compiled.forget(packed)
    packed.set(images)
    const into = new Int32Array(packed.buffer, packed.byteOffset + labelsOffset, this.batchSize).fill(-1)
    if (labels) into.set(labels)
    return { bytes: packed }
  }

  /**
   * Why a step gave NaN or infinity: the first tensor that has it, or null where none has. With the step's own input and
   * scalars, before anything else changes weights.
   */
  findNonFinite(input: StepInput, scalars: Partial<StepScalars> = {}): Promise<NonFinite | null> {
    return this.compiled.findNonFinite(input, scalars)
  }

  /** Takes the input of the next step to the device beside the present step, where the device does so. */
  prefetch(input: StepInput): Promise<void> {
    return this.compiled.prefetch(input)
  }

  /** The host wrote weights (a step does it by itself): fold, pack and round them again before the next run. */
  invalidate(): void {
    binding().invalidate(this.compiled.handle)
  }

  close(): void {
    this.compiled.close()
  }
}

export class TrainPlan extends BoundPlan {
  /** `norm`: the plan takes the norm of the gradients, whether it clips or not. */
  constructor(
    compiled: Compiled,
    private readonly options: TrainPlanOptions,
    private readonly norm: boolean,
  ) {
    super(compiled, options.batchSize, options.imageSize)
  }

  /**
   * One optimizer step: forward, backward, update. Where the loss or the norm of the gradients is not finite the parameters are left
   * as they were.
   * @throws EFF_NAN when the update made parameters that are not finite, EFF_CLOSED, EFF_INVALID_ARGUMENT (a batch too small for the plan), EFF_ABORTED (closed meanwhile)
   */
  async step(input: StepInput, scalars: Partial<StepScalars>): Promise<StepResult> {
    const { clip } = this.options
    const output = await this.compiled.step(input, clip ? scalars : { ...scalars, clip_norm: 0 })
    const result: StepResult = {
      loss: this.compiled.floats(output, OUTPUTS.loss)[0]!,
      ranks: this.compiled.ints(output, OUTPUTS.rank),
    }
    if (this.norm) result.gradNorm = this.compiled.floats(output, OUTPUTS.gradNorm)[0]!
    return result
  }
}

export class EvalPlan extends BoundPlan {
  constructor(
    compiled: Compiled,
    options: EvalPlanOptions,
    private readonly names: { logits: string; features: string },
  ) {
    super(compiled, options.batchSize, options.imageSize)
  }

  async run(input: StepInput): Promise<EvalResult> {
    const output = await this.compiled.step(input, {})
    return {
      loss: this.compiled.floats(output, OUTPUTS.loss)[0]!,
      ranks: this.compiled.ints(output, OUTPUTS.rank),
      logits: this.compiled.floats(output, this.names.logits),
      features: this.compiled.floats(output, this.names.features),
    }
  }
}

/** Bytes. */
export interface DeviceMemoryUse {
  /** Arenas, and what the model's plans have beside them. */
  model: number
  /** By the driver: also its contexts, libraries and other processes. */
  inUse: number
  total: number
}

export class Session implements AsyncDisposable {
  private plans = new Set<BoundPlan>()
  private pool: PoolHandle | undefined
  private memoryHandle: MemoryHandle | undefined
  private emaInUse = false
  /** The plans of a GPU share a 16-bit copy of the weights. */
  private weightsCopied = false
  /** Bytes of each arena that plans have asked for. */
  private readonly held: number[] = []
  private warn: Warn | undefined
  private toldOfHost = false
  /** Of other models of the process. */
  private readonly unlockedBefore: number

  private constructor(
    readonly config: ModelConfig,
    readonly precision: SessionPrecision,
    readonly threads: number,
    /** "cpu" or "cuda:N". */
    readonly device: string,
    private readonly deviceHandle: DeviceHandle,
    readonly layout: WeightsLayout,
    /** Of a GPU: which kernels its ops get. */
    readonly tuning: KernelTuning | undefined,
    /** Plans that are bound from now on get their kernels by a table. */
    public deterministic: boolean,
    limit: number | undefined,
  ) {
    this.unlockedBefore = binding().unlockedBytes(deviceHandle)
    const sizes = new Array<number>(ARENA_COUNT).fill(0)
    sizes[ARENA.weights] = layout.bytes
    try {
      this.memoryHandle = binding().createMemory(sizes, deviceHandle, limit)
    } catch (cause) {
      throw weightsError(config.name, device, layout.bytes, binding().deviceInfo(deviceHandle).totalBytes, cause)
    }
    try {
      this.pool = binding().createPool(threads)
    } catch (cause) {
      binding().closeMemory(this.memoryHandle)
      throw cause
    }
    this.held[ARENA.weights] = layout.bytes
  }

  /**
   * Starts threads and allocates the weights (zero until written).
   * @throws EFF_BACKEND_MISSING (the addon, or the device), EFF_CPU_UNSUPPORTED (below AVX2), EFF_PRECISION (see `checkCpuPrecision`), EFF_OOM, EFF_CONFIG_VALUE (`openDevice`)
   */
  static async create(options: SessionOptions): Promise<Session> {
    const { config, precision } = options
    const device = deviceName(options.device === undefined ? 'cpu' : options.device)
    const { deterministic = false } = options
    if (typeof deterministic !== 'boolean') {
      throw new EffnetError('EFF_CONFIG_VALUE', `deterministic = ${JSON.stringify(deterministic)}: true or false`)
    }
    const cpu = binding().cpuInfo()
    if (device === 'cpu') {
      if (cpu.unsupported) throw new EffnetError('EFF_CPU_UNSUPPORTED', cpu.unsupported)
      checkCpuPrecision(precision, cpu)
    }
    const handle = await openDevice(device)
    const threads = device === 'cpu' ? (options.threads ?? cpu.cpus) : 1
    const tuning = device === 'cpu' ? undefined : await KernelTuning.open(device)
    const limit =
      options.memoryLimit === undefined ? undefined : memoryBytes(options.memoryLimit, binding().deviceInfo(handle).totalBytes)
    const layout = weightsLayout(modelParams(config))
    if (limit !== undefined) checkWeights(config.name, layout.bytes, limit)
    return new Session(config, precision, threads, device, handle, layout, tuning, deterministic, limit)
  }

  /** Where batches are made, or else who reads them. @throws EFF_CONFIG_VALUE for `gpu` and a model that is on none */
  loaderDevice(backend: DataBackend | undefined): Pick<LoaderOptions, 'device' | 'memory' | 'pageLockedFor'> {
    checkDataBackend(backend, this.device)
    return backend === 'gpu' ? { device: this.deviceHandle, memory: this.memory } : { pageLockedFor: this.deviceHandle }
  }

  /** Memory for an input that is given to steps again and again: the device reads it where it lies. @throws EFF_OOM */
  inputMemory(bytes: number): Uint8Array {
    return binding().pageLocked(this.deviceHandle, bytes)
  }

  /** Who hears of what the machine makes of the model: kernels that cannot be kept, memory that is slow; and when kernels are measured. */
  listen(to: { onWarning?: Warn; onMeasuring?: (event: Measuring) => void }): void {
    this.warn = to.onWarning
    this.toldOfHost = false
    if (!this.tuning) return
    this.tuning.onWarning = to.onWarning
    this.tuning.onMeasuring = to.onMeasuring
  }

  /** Of the host, for copies to a GPU, that could not be page-locked since this session began; 0 on the CPU. */
  get unlockedBytes(): number {
    return binding().unlockedBytes(this.deviceHandle) - this.unlockedBefore
  }

  private tellOfHost(): void {
    if (!this.warn || this.toldOfHost || this.unlockedBytes === 0) return
    this.toldOfHost = true
    this.warn(
      'host-memory',
      'the host has no page-locked memory left for batches and results: they lie in ordinary memory, from which the GPU copies more slowly; results are the same',
      HOST_MEMORY_MEND,
    )
  }

  /** Whether inputs are taken ahead. */
  get stagesAhead(): boolean {
    return this.device !== 'cpu'
  }

  /** The name of the machine that the plans run on. */
  get deviceLabel(): string {
    return binding().deviceInfo(this.deviceHandle).name
  }

  private async room(): Promise<Room> {
    const { availableBytes } = binding().deviceInfo(this.deviceHandle)
    const available = this.device === 'cpu' ? Math.min(availableBytes, await availableMemory()) : availableBytes
    const { limit, used } = binding().memoryBudget(this.memory)
    const gpu = this.device !== 'cpu'
    return limit - used < available ? { available: limit - used, limit, gpu } : { available, gpu }
  }

  /** Of a GPU's memory, once plans are bound: it stays at that. Undefined on the CPU. */
  deviceMemoryUse(): DeviceMemoryUse | undefined {
    if (this.device === 'cpu') return undefined
    const { availableBytes, totalBytes } = binding().deviceInfo(this.deviceHandle)
    return { model: binding().memoryBudget(this.memory).used, inUse: totalBytes - availableBytes, total: totalBytes }
  }

  /**
   * What an executable has beside its arenas: on a GPU a second input, and 16-bit copies: of what it folds, and of the weights where no
   * other has made that.
   */
  private besideArenas(arenaBytes: readonly number[]): number {
    if (this.device === 'cpu') return 0
    const weights = this.weightsCopied ? 0 : arenaBytes[ARENA.weights]!
    const copied = this.format.dtype === 'f32' ? 0 : weights + arenaBytes[ARENA.prepared]!
    return arenaBytes[ARENA.input]! + copied / 2
  }

  /** How fast the machine is: the yardstick of a profile. */
  measurePeaks(): Promise<Peaks> {
    return binding().measurePeaks(this.threads, this.deviceHandle)
  }

  /** Parameters and buffers in the order of the model's state dict. */
  get slots(): readonly WeightSlot[] {
    return this.layout.slots
  }

  get memory(): MemoryHandle {
    if (!this.memoryHandle) throw new EffnetError('EFF_CLOSED', 'the model has been closed')
    return this.memoryHandle
  }

  private get format(): NumberFormat {
    return FORMATS[this.precision]
  }

  private get target(): Target {
    return this.device === 'cpu' ? { device: 'cpu', isa: binding().cpuInfo().isa } : { device: 'cuda' }
  }

  private site(pool: PoolHandle, halfWeightGradients = false): BindingSite {
    const { threads, tuning, deterministic } = this
    return {
      pool,
      threads,
      numbers: { tf32: this.format.tf32, halfWeightGradients },
      tuning,
      deterministic,
      room: () => this.room(),
      beside: (arenaBytes) => this.besideArenas(arenaBytes),
      used: () => this.tellOfHost(),
    }
  }

  private openPool(): PoolHandle {
    if (!this.pool) throw new EffnetError('EFF_CLOSED', 'the model has been closed')
    return this.pool
  }

  /** Compiles a training step. @throws EFF_OOM with the bytes asked for, EFF_CONFIG_VALUE for `halfWeightGradients` that mean nothing */
  async trainPlan(options: TrainPlanOptions): Promise<TrainPlan> {
    const pool = this.openPool()
    const { dtype, lossScale } = this.format
    const { halfWeightGradients = false } = options
    checkHalfWeightGradients(halfWeightGradients, this)
    // Gradients that are not finite are found by their norm. A GPU takes it in every plan, for microseconds of a step: the weights
    // before stay. Without it the update itself finds out, when it has written, as on CPUs.
    const gradNorm = options.clip || lossScale || this.device !== 'cpu'
    const programOf = async (batchSize: number): Promise<Program> => ({
      graph: await inTurns(trainProgram.parts(this.config, { ...options, batchSize, gradNorm, dtype, target: this.target })),
      region: null,
    })
    const { batchSize, accumulates } = options
    const program = await programOf(batchSize)
    if (halfWeightGradients && !program.graph.nodes.some(mayHaveHalfGradient)) {
      throw new EffnetError('EFF_CONFIG_VALUE', `halfWeightGradients: ${this.config.name} has no gradient that it is for`, {
        hint: 'leave it out; it is for dense convolutions larger than 1x1 behind the first, as EfficientNetV2 has',
      })
    }
    const { name } = options.optimizer
    const request = {
      weightOffsets: this.layout.offsets,
      weightBytes: this.layout.bytes,
      mirrors: { grads: true, moment0: true, moment1: name !== 'sgd', ema: options.ema },
    }
    const compiled = await Compiled.create(
      this.site(pool, halfWeightGradients),
      this.memory,
      { batchSize, program, programOf, request, accumulates, storesGradients: this.device !== 'cpu' && dtype === 'f32' },
      this.held,
    )
    return this.keep(new TrainPlan(compiled, options, gradNorm))
  }

  /** Compiles a forward pass with BN folded into the weights. */
  async evalPlan(options: EvalPlanOptions): Promise<EvalPlan> {
    const pool = this.openPool()
    const { batchSize } = options
    const programOf = (batch: number) =>
      inTurns(evalProgram.parts(this.config, { ...options, batchSize: batch, dtype: this.format.dtype, target: this.target }))
    const program = await programOf(batchSize)
    const request = { weightOffsets: this.layout.offsets, weightBytes: this.layout.bytes }
    const compiled = await Compiled.create(this.site(pool), this.memory, { batchSize, program, programOf, request }, this.held)
    return this.keep(new EvalPlan(compiled, options, program))
  }

  private keep<P extends BoundPlan>(plan: P): P {
    this.weightsCopied = true
    this.plans.add(plan)
    const close = plan.close.bind(plan)
    plan.close = () => {
      this.plans.delete(plan)
      close()
    }
    return plan
  }

  /** After any change of weights outside a training step, so that what is made from them is made anew. */
  weightsChanged(): void {
    for (const plan of this.plans) plan.invalidate()
  }

  /** A parameter or buffer as stored (OHWI, HWC). `arena`: weights unless given. Blocks for the copy only. */
  read(name: string, arena: number = ARENA.weights): Float32Array {
    const slot = this.slot(name)
    const values = new Float32Array(slot.size)
    binding().readArena(this.memory, arena, slot.offset, new Uint8Array(values.buffer))
    return values
  }

  write(name: string, values: Float32Array, arena: number = ARENA.weights): void {
    const slot = this.slot(name)
    if (values.length !== slot.size) {
      throw new EffnetError('EFF_INVALID_ARGUMENT', `${name} has ${slot.size} elements, not ${values.length}`)
    }
    binding().writeArena(this.memory, arena, slot.offset, new Uint8Array(values.buffer, values.byteOffset, values.byteLength))
    if (arena === ARENA.weights) this.weightsChanged()
  }

  private slot(name: string): WeightSlot {
    const slot = this.slots.find((s) => s.name === name)
    if (!slot) throw new EffnetError('EFF_INVALID_ARGUMENT', `${this.config.name} has no tensor ${name}`)
    return slot
  }

  /** Starts the moving average from the present weights. */
  async resetEma(): Promise<void> {
    await changeMemory(this.memory, async () => {
      await binding().ensureArena(this.memory, ARENA.ema, this.layout.bytes)
      await binding().copyArena(this.memory, ARENA.weights, ARENA.ema)
    })
  }

  /** As the last step left it; 1 where the precision needs none. */
  get lossScale(): LossScale {
    return binding().lossScale(this.memory)
  }

  set lossScale(scale: LossScale) {
    binding().setLossScale(this.memory, scale)
  }

  /** Zeroes the optimizer state. */
  async resetOptimizer(): Promise<void> {
    await changeMemory(this.memory, async () => {
      for (const arena of [ARENA.moment0, ARENA.moment1]) await binding().copyArena(this.memory, -1, arena)
    })
  }

  /** Exchanges weights and moving average: evaluation between `useEma(true)` and `useEma(false)` uses the average. */
  async useEma(on: boolean): Promise<void> {
    if (on === this.emaInUse) return
    await changeMemory(this.memory, () => binding().swapArenas(this.memory, ARENA.weights, ARENA.ema))
    this.emaInUse = on
    this.weightsChanged()
  }

  /** Frees native memory and stops the threads; a step in flight is cut short. Idempotent. */
  close(): void {
    for (const plan of [...this.plans]) plan.close()
    if (this.memoryHandle) binding().closeMemory(this.memoryHandle)
    if (this.pool) binding().closePool(this.pool)
    this.memoryHandle = undefined
    this.pool = undefined
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close()
  }
}
