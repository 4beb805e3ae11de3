/**
 * The addon's surface, typed; the single importer of the .node file. Functions over opaque handles; every policy is in
 * TypeScript. Errors from native code arrive as EffnetError (code, message).
 */

import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { EffnetError, type ErrorCode } from './errors.js'
import type { RandomDistribution } from './nn/init.js'
import { packageRoot } from './paths.js'

export { ARENA } from './graph/plan_format.js'

declare const tag: unique symbol
type Handle<T extends string> = { readonly [tag]: T }

/** A machine that plans run on: the CPU, or a GPU that has been opened. */
export type DeviceHandle = Handle<'device'>
/** Worker threads of the engine. */
export type PoolHandle = Handle<'pool'>
/** Arenas that plans of one model share (weights, gradients, moments, EMA, activations). */
export type MemoryHandle = Handle<'memory'>
/** A plan bound to kernels over one memory. */
export type ExecutableHandle = Handle<'executable'>
/** A running input pipeline. */
export type LoaderHandle = Handle<'loader'>
/** A decoded batch in native memory. */
export type BatchHandle = Handle<'batch'>

export interface CpuInfo {
  /** e.g. "AMD EPYC". */
  model: string
  /** Best set our kernels use: "avx3", "avx2", ... */
  isa: string
  /** Why the CPU backend cannot run here, or null. */
  unsupported: string | null
  /** What oneDNN dispatches to, e.g. "avx512_core_bf16", "avx512_core_amx". */
  onednnIsa: string
  avx2: boolean
  avx512: boolean
  avx512Bf16: boolean
  amxBf16: boolean
  /** CPUs this process may use: the smallest of affinity and cgroup quota (rounded up), at least 1. */
  cpus: number
  /** Bytes this process may use: the smaller of physical memory and the cgroup limit. */
  memoryBytes: number
}

/** Of a plan's ops in their order, then of what a backend does beside them. */
export interface DumpOp {
  name: string
  op: string
  kernel: string
  flags: number
  flops: number
  /** Bytes of operands read and written once. */
  bytes: number
  /** Mean milliseconds per step since profiling was switched on; 0 without. */
  ms: number
}

/** Of ops that have several kernels on this device, by what an op's choice depends on (shapes, types, attributes): its kernel's id. */
export type KernelChoices = Record<string, string>

/** How a binding chooses: kept choices first, then the fastest by measuring, else by a table. */
export interface Tuning {
  measure: boolean
  choices: KernelChoices
  /** Measuring begins, of so many ops; not called where there is nothing to measure. */
  begins?: (ops: number) => void
}

/** What a binding has come to. */
export interface TuningReport {
  choices: KernelChoices
  /** Of them, at this binding. */
  measured: number
  /** Kept ones that cannot be had here. */
  refused: number
}

/** The first tensor of a step that holds NaN or infinity. */
export interface NonFinite {
  /** 'weights': before the step; 'gradient': of the update that made such weights; else where in the step. */
  part: 'weights' | 'gradient' | 'forward' | 'backward'
  op: string
  /** Name of the op in the graph. */
  layer: string
  tensor: string
}

/** How far the loss is scaled up, and how that has gone. */
export interface LossScale {
  scale: number
  /** Updates since the scale has changed. */
  growth: number
  /** Updates left out because gradients were not finite. */
  skipped: number
}

export interface StepInput {
  /** Either a batch of a loader... */
  batch?: BatchHandle
  /** ...or the bytes of the plan's input arena, which must not change until the call has settled. */
  bytes?: Uint8Array
  /** What `prefetch` gave for the same input: where the device still has it, it is not brought again. */
  ticket?: number
}

/** Where a parameter goes in a file, and how its layout changes: `permute` is the layout stored in the arena. */
export interface TensorTransfer {
  arena: number
  /** Bytes from the start of the arena. */
  offset: number
  /** Bytes from the start of the file's data. */
  fileOffset: number
  dtype: 'F32' | 'F16' | 'BF16' | 'F64'
  /** 'none' copies; 'ohwi' and 'hwc' convert between the arena's layout and OIHW / C1HW of the file. */
  permute: 'none' | 'ohwi' | 'hwc'
  /** [O, I, kh, kw] for 'ohwi' and 'hwc'; [n] for 'none'. */
  shape: readonly number[]
}

export interface FileSpec {
  path: string
  /** Written first, as it is. */
  header: Uint8Array
  /** Bytes after the header. */
  dataBytes: number
  tensors: readonly TensorTransfer[]
}

export interface WrittenFile {
  bytes: number
  /** Lower-case hex. */
  sha256: string
  /** Of a saved file: the first 8 digits of each tensor's SHA-256, in the order of the file. */
  tensors?: string
}

/** What a test wants to happen to a file operation: see native/io/fault.h. */
export type SaveFault = 'none' | 'torn' | 'ENOSPC' | 'EIO'

export interface DecodeOptions {
  /** 'eval': full decode, Pillow resize of the short side to `resizeTo`, centre crop `size`. 'train': random resized crop + flip. 'full': decoded size. */
  mode: 'eval' | 'train' | 'full'
  size: number
  /** Short side before the centre crop ('eval'). */
  resizeTo?: number
  /** 'eval': resize the whole image to size x size instead. */
  squash?: boolean
  interpolation?: 'bicubic' | 'bilinear'
  exifOrientation?: boolean
  maxPixels?: number
  /** 'train': area range, aspect range, flip probability, Philox key and counters. */
  scaleMin?: number
  scaleMax?: number
  ratioMin?: number
  ratioMax?: number
  hflip?: number
  seed?: number
  epoch?: number
  index?: number
}

export interface DecodedImage {
  width: number
  height: number
  /** RGB, width*height*3. */
  data: Uint8Array
}

export interface LoaderOptions {
  /** Absolute paths; a file that is not a JPEG is handed to `decodeOther`. */
  files: readonly string[]
  /** Class index of each file. */
  labels: Int32Array
  batchSize: number
  /** Images are [batchSize, size, size, 3] uint8, then labels int32 at the next multiple of 64 bytes; missing ones of a tail batch have label -1. */
  decode: DecodeOptions
  workers: number
  /** Batches ready or in work. */
  prefetch: number
  /** Decodes what is not a JPEG (sharp): gets bytes, gives raw RGB. */
  decodeOther?: (bytes: Uint8Array, path: string) => Promise<DecodedImage>
  /** The device that reads the batches: they lie where its copies read them directly, where the host has such memory (`unlockedBytes`). */
  pageLockedFor?: DeviceHandle
  /** A GPU that makes the batches; for plans on it. @throws EFF_BACKEND_MISSING, EFF_OOM */
  device?: DeviceHandle
  /** In whose limit what `device` takes counts. */
  memory?: MemoryHandle
}

export interface LoaderBatch {
  batch: BatchHandle
  /**
   * Real samples; below batchSize in a tail batch. 0 only at the end of an epoch whose last files were unreadable: such
   * a batch carries nothing but `bad`.
   */
  count: number
  /** Positions in `files` of the samples, in order. */
  indices: Uint32Array
  /** Of a batch made on a GPU: positions in `files` of those that the CPU decoded. */
  onCpu: Uint32Array
  /** Files that could not be read; their slots were filled by the next good sample. */
  bad: { index: number; code: ErrorCode; message: string }[]
  /** Milliseconds this call waited for data. */
  waitMs: number
}

/** What there is of CUDA on this machine. */
export interface CudaInfo {
  /** Where the backend's shared library is looked for. */
  library: string
  /** What keeps the backend from being used, with the mend; null: nothing. */
  unavailable: string | null
  /** That this build has kernels for, e.g. "80;90a"; "" without the backend. */
  architectures: string
  /** Whether this build has cuDNN's part. */
  cudnn: boolean
  /** "" without a driver. */
  driverPath: string
  /** Newest CUDA that the driver knows, e.g. 13000; 0 without a driver. */
  driverVersion: number
  /** e.g. "580.65.06"; "" without a driver, or where nothing tells. */
  driverRelease: string
  /** `problem`: why one cannot be used; "": it can. */
  gpus: { name: string; computeCapability: number; memoryBytes: number; problem: string }[]
  /** NVIDIA's libraries, each optional; none without the backend. */
  libraries: CudaLibrary[]
}

export interface CudaLibrary {
  name: string
  /** "" where none is used; then `problem` is why, `without` what that means, and `mend` what brings it. */
  path: string
  /** e.g. "9.19.0" */
  version: string
  problem: string
  without: string
  mend: string
}

/** What all of a machine reaches at once, per second; 0: not measured. */
export interface Peaks {
  /** A multiply-add counts 2. Of a GPU nothing is measured. */
  fp32Flops: number
  /** Of dot products summed in FP32; 0 where the CPU has neither AVX512_BF16 nor AMX. */
  bf16Flops: number
  /** Read plus written by a copy far larger than the caches. */
  bytes: number
}

export interface NativeBinding {
  version(): { addon: string; onednn: string; opTableHash: number; build: string }
  cpuInfo(): CpuInfo
  /**
   * Another program in this process's place, with its standard streams alone: does not return. `env`: "NAME=value". What lay on a GPU
   * is given back, which no other way out of a fault does for sure. @throws EFF_IO where it cannot be started; all is then as it was
   */
  replaceProcess(file: string, argv: readonly string[], env: readonly string[]): never
  /** Without waiting for what is in work, an op on a GPU that hangs, say; what Node still has to write is lost. */
  endProcess(exitCode: number): never
  /** Native bytes held now, by kind; leak tests compare these exactly. */
  memoryUsage(): { arenas: number; kernels: number; batches: number; handles: number }

  /** Measures a device, else the CPU, for about half a second, on threads of its own. */
  measurePeaks(threads: number, device?: DeviceHandle): Promise<Peaks>

  /**
   * Elements [begin, end) of `into`, at once, in 2 to 5 ns each; `begin` is a multiple of 4. A value depends on seed, stream (32
   * bits) and element alone and is the same, bit for bit, on every machine: see native/cpu/fill_random.h.
   * @throws EFF_INVALID_ARGUMENT
   */
  fillRandom(into: Float32Array, distribution: RandomDistribution, seed: number, stream: number, begin: number, end: number): void

  createPool(threads: number): PoolHandle
  closePool(pool: PoolHandle): void

  /** "cpu", "cuda" or "cuda:N". @throws EFF_BACKEND_MISSING (message: what is missing and the mend) */
  openDevice(device: string): Promise<DeviceHandle>
  /** @throws EFF_GPU_FAULT after one */
  deviceInfo(device: DeviceHandle): { name: string; availableBytes: number; totalBytes: number }
  cudaInfo(): Promise<CudaInfo>

  /**
   * Arenas on a device; without one on the CPU. Plans bound to them run there. `limit`: bytes that they, and on a GPU the plans, may
   * take. @throws EFF_OOM
   */
  createMemory(arenaBytes: readonly number[], device?: DeviceHandle, limit?: number): MemoryHandle
  /** Bytes; the limit may be infinite. */
  memoryBudget(memory: MemoryHandle): { limit: number; used: number }
  /**
   * Grows an arena to `bytes` if it is smaller, keeping its contents (but not the activations'). This, `copyArena` and `swapArenas`
   * work off the event loop, after the snapshots of a save; a step that is asked for meanwhile waits.
   * @throws EFF_CLOSED while a step runs, EFF_OOM
   */
  ensureArena(memory: MemoryHandle, arena: number, bytes: number): Promise<void>
  /** Copies between JS and an arena; small ranges only (a step must not be running). */
  readArena(memory: MemoryHandle, arena: number, offset: number, into: Uint8Array): void
  writeArena(memory: MemoryHandle, arena: number, offset: number, bytes: Uint8Array): void
  /** Copies one arena onto another of the same size, or fills with zeros when `from` is -1. */
  copyArena(memory: MemoryHandle, from: number, to: number): Promise<void>
  /** Exchanges two arenas of the same size (evaluation with the moving average). */
  swapArenas(memory: MemoryHandle, a: number, b: number): Promise<void>
  closeMemory(memory: MemoryHandle): void
  /** As the last step left it. Not while a step runs: EFF_CLOSED. */
  lossScale(memory: MemoryHandle): LossScale
  setLossScale(memory: MemoryHandle, scale: LossScale): void

  /** The native verifier alone: allocates nothing, binds nothing (the null backend). */
  verifyPlan(plan: Uint8Array): { ops: number; tensors: number; arenaBytes: number[] }
  /**
   * Verifies the plan, binds kernels, allocates. Runs on an engine thread. With `tuning.measure` the memory's activations are written
   * over; without `tuning` ops get what a table says.
   */
  bind(pool: PoolHandle, memory: MemoryHandle, plan: Uint8Array, tuning?: Tuning): Promise<ExecutableHandle>
  tuning(executable: ExecutableHandle): TuningReport
  dump(executable: ExecutableHandle): DumpOp[]
  setProfiling(executable: ExecutableHandle, on: boolean): void
  /**
   * One step, on the engine's threads. Resolves to a copy of the output arena. Where the loss or the norm of the gradients is not
   * finite the parameters are left as they were. @throws EFF_NAN when the update itself made them so
   */
  step(executable: ExecutableHandle, input: StepInput, scalars: Float64Array): Promise<Uint8Array>
  /**
   * Takes a coming step's input to the device beside the present step; it may change when that has settled. Resolves to the
   * ticket that the step gives with the input; 0: this device takes none ahead, or has all it can.
   */
  prefetch(executable: ExecutableHandle, input: StepInput): Promise<number>
  /** Zeroed memory that the device's steps read where it lies (on a GPU page-locked, where the host has such memory). @throws EFF_OOM */
  pageLocked(device: DeviceHandle, bytes: number): Uint8Array
  /** Of the host, asked for by this process for copies to the device, that could not be page-locked: those copies are slower. */
  unlockedBytes(device: DeviceHandle): number
  /**
   * Why a step was not finite: runs it again as far as the first tensor that is not, or resolves to null. Parameters are not
   * changed. Call it with the step's own input and scalars and before anything else writes the memory.
   */
  findNonFinite(executable: ExecutableHandle, input: StepInput, scalars: Float64Array): Promise<NonFinite | null>
  /** Weights changed outside a step: run the prepare program before the next one. */
  invalidate(executable: ExecutableHandle): void
  closeExecutable(executable: ExecutableHandle): void
  /** Reads any tensor of the plan after a step, as bytes (tests and debugging; activations may be overwritten). */
  readTensor(executable: ExecutableHandle, name: string): Uint8Array

  /**
   * Reads tensors of a file into arenas on an engine thread; ranges are checked against the file's size. Several loads may
   * run at once; steps queued meanwhile wait. @throws EFF_CLOSED while a step runs, EFF_IO, EFF_INVALID_ARGUMENT
   */
  loadTensors(memory: MemoryHandle, path: string, dataStart: number, tensors: readonly TensorTransfer[]): Promise<void>
  /**
   * Saves what the arenas hold now (at a step boundary): copied off-thread while steps and host writes wait, then written,
   * fsynced and hashed beside them. The folder must exist. @throws EFF_CLOSED while a step runs, EFF_CKPT_NO_SPACE (needed
   * and free), EFF_IO
   */
  saveTensors(memory: MemoryHandle, files: readonly FileSpec[]): Promise<WrittenFile[]>
  /** Fsyncs a file or folder off-thread. */
  fsync(path: string): Promise<void>
  /** Counts a file operation of a save among those of native code; EFFNET_FAULT may end the process here. */
  saveOperation(operation: string, path: string): SaveFault
  /** SHA-256 of a file, off-thread. */
  hashFile(path: string): Promise<WrittenFile>

  /**
   * Decodes one JPEG off-thread, from a copy of the bytes.
   * @throws EFF_DATA_DECODE (with the byte position where known), EFF_DATA_LIMIT above maxPixels or 100 scans
   */
  decodeJpeg(bytes: Uint8Array, options: DecodeOptions): Promise<DecodedImage>
  /** The resize / crop / flip part of `decodeJpeg` on raw RGB pixels, off-thread. They must not change until it settles. */
  transformPixels(image: DecodedImage, options: DecodeOptions): Promise<DecodedImage>
  createLoader(options: LoaderOptions): LoaderHandle
  /** Starts an epoch over `order` (positions in files), from sample `start` on. */
  loaderStart(loader: LoaderHandle, order: Uint32Array, start: number, epoch: number, seed: number, dropLast: boolean): void
  /** The next batch, or null at the end of the epoch. */
  loaderNext(loader: LoaderHandle): Promise<LoaderBatch | null>
  /** Gives the batch's memory back to the ring. */
  releaseBatch(batch: BatchHandle): void
  /** Copies a batch out (tests, mosaics). */
  readBatch(batch: BatchHandle): Uint8Array
  closeLoader(loader: LoaderHandle): void
}

let loaded: NativeBinding | undefined

export const HOST_MEMORY_MEND =
  'free memory of the host, or raise what this process may have of it: `free -m`, the limit of the container (docker run --memory, memory.max of its cgroup), `ulimit -l`'

/** By words of the message, which native code keeps to. */
const MENDS: readonly [ErrorCode, RegExp, string][] = [
  ['EFF_OOM', /of the host's memory could not be allocated/, HOST_MEMORY_MEND],
  [
    'EFF_BACKEND_MISSING',
    /images cannot be decoded on the GPU .*does not start: \w+ failed with status/,
    "install nvJPEG's package again; or dataBackend: 'cpu'",
  ],
  [
    'EFF_BACKEND_MISSING',
    /does not start: \w+ failed with status/,
    "install that library's package again, all of one release; or EFFNET_CUDA_PROVIDER=own, which does without",
  ],
  [
    'EFF_OOM',
    /does not start: \w+ failed with status/,
    'free memory of the GPU, which other processes may hold (nvidia-smi); or EFFNET_CUDA_PROVIDER=own, which does without that library',
  ],
  [
    'EFF_BACKEND_MISSING',
    /EFFNET_CUDA_PROVIDER=/,
    'unset EFFNET_CUDA_PROVIDER, or bring that library: effnet doctor tells what is missing and what brings it',
  ],
  [
    'EFF_OOM',
    /images decoded on the GPU/,
    "dataBackend: 'cpu', which needs none of it, a smaller batch, or a larger memoryLimit",
  ],
]

/** Of an error that native code found, where that code does not know how it was called. */
function nativeError(code: string, message: string): EffnetError {
  const known = MENDS.find(([of, words]) => of === code && words.test(message))
  if (known) return new EffnetError(known[0], message, { hint: known[2] })
  if (code !== 'EFF_GPU_FAULT') return new EffnetError(code as ErrorCode, message)
  const hint = message.startsWith('op ')
    ? 'the same op every time: a bug of its kernel, report it; another one each time: look at the GPU (nvidia-smi -q -d ECC, dmesg)'
    : 'this process has lost the GPU: run it again in another one, training from the last checkpoint if there is one; with EFFNET_CUDA_SYNC=1 that waits for every kernel and names the op at fault'
  return new EffnetError(code, message, { hint })
}

/** Loads the addon once. Throws EFF_BACKEND_MISSING with every path tried and the mend. */
export function binding(): NativeBinding {
  if (loaded) return loaded
  const require = createRequire(import.meta.url)
  const root = packageRoot()
  const asked = process.env['EFFNET_ADDON']
  // What was asked for and nothing else: another build would give results that are taken for its.
  const candidates = asked
    ? [asked]
    : [path.join(root, 'build/Release/effnet.node'), path.join(root, `prebuilds/${process.platform}-${process.arch}/effnet.node`)]
  const tried: string[] = []
  for (const file of candidates) {
    if (!existsSync(file)) {
      tried.push(`${file} (not found)`)
      continue
    }
    try {
      const native = require(file) as NativeBinding & { setErrorFactory(f: (code: string, message: string) => Error): void }
      native.setErrorFactory(nativeError)
      loaded = native
      return native
    } catch (cause) {
      tried.push(`${file} (${(cause as Error).message})`)
    }
  }
  if (asked) {
    throw new EffnetError('EFF_BACKEND_MISSING', `EFFNET_ADDON: ${tried[0]}`, {
      hint: 'unset EFFNET_ADDON, or name the file of an addon that was built for this package',
      details: { tried },
    })
  }
  throw new EffnetError('EFF_BACKEND_MISSING', `the native addon could not be loaded; tried ${tried.join('; ')}`, {
    // An installed package has no sources to build it from.
    hint: existsSync(path.join(root, 'native'))
      ? 'npm run setup   (builds it), or set EFFNET_ADDON to the file'
      : 'install the package again on Linux x64 with glibc, or set EFFNET_ADDON to an addon that was built from a checkout',
    details: { tried, platform: process.platform, arch: process.arch, node: process.versions.node },
  })
}
