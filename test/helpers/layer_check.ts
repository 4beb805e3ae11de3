/**
 * Every layer shape of a model through a backend, one op at a time, beside the float64 interpreter: the graph is the one that
 * training or inference on a GPU runs, and each op gets the values that it meets there.
 */
import { ARENA, binding, type MemoryHandle, type PoolHandle } from '../../ts/binding.js'
import { Graph } from '../../ts/graph/graph.js'
import { interpret, rounded } from '../../ts/graph/interpreter.js'
import { OP_TABLE } from '../../ts/graph/op_table.js'
import { withTanh } from '../../ts/graph/ops/activation.js'
import { actCode, type DType, elements, type Node, type Tensor } from '../../ts/graph/types.js'
import { getModelConfig } from '../../ts/nn/index.js'
import { emit } from '../../ts/passes/emit.js'
import { align, planMemory } from '../../ts/passes/plan_memory.js'
import { evalProgram, trainProgram } from '../../ts/runtime/programs.js'
import { packScalars } from '../../ts/runtime/scalars.js'
import { difference, maxAbs, maxDifference, networkValues, uniform } from '../graph/values.js'

const SCALARS = { seed: 11, step: 4 }

/** One op of `graph` by itself: what it reads are inputs or parameters, what it makes are outputs. */
function alone(node: Node): Graph {
  const graph = new Graph('alone')
  const made = new Map<Tensor, Tensor>()
  const twin = (t: Tensor): Tensor => {
    let own = made.get(t)
    if (!own) {
      if (t.role === 'parameter') own = graph.parameter(t.name, t.shape, t.param!)
      else if (t.role === 'prepared')
        own = graph.parameter(t.name, t.shape, { kind: 'conv', layout: 'vector', torchShape: t.shape })
      else if (t.role === 'buffer') own = graph.buffer(t.name, t.shape, t.param!)
      else own = graph.input(t.name, t.shape, t.dtype)
      made.set(t, own)
    }
    return own
  }
  const { inputs: ports, outputs } = OP_TABLE[node.op]
  const inputs = Object.fromEntries(ports.flatMap((port, i) => (node.inputs[i] ? [[port.name, twin(node.inputs[i])]] : [])))
  const updates = node.updates.map(twin)
  const into = Object.fromEntries(
    outputs.flatMap((port, i) => {
      const t = node.outputs[i]
      return t ? [[port.name, graph.tensor(t.name, t.shape, t.dtype, 'output')]] : []
    }),
  )
  graph.node(node.op, inputs, node.attrs, { name: node.name, updates, into })
  return graph
}

const BYTES: Record<DType, number> = { f32: 4, bf16: 2, f16: 2, u8: 1, i32: 4 }

/** IEEE 754 binary16 of a value that it has. */
function halfBits(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0
  const size = Math.abs(value)
  if (size === Infinity) return sign | 0x7c00
  const exponent = Math.max(-14, Math.floor(Math.log2(size || 1e-30)))
  const units = size / 2 ** (exponent - 10)
  return sign | (units >= 1024 ? ((exponent + 15) << 10) + units - 1024 : units)
}
function halfValue(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023]
  if (exponent === 31) return fraction ? Number.NaN : sign * Infinity
  return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24)
}

export function encode(values: Float64Array, dtype: DType): Uint8Array {
  if (dtype === 'u8') return Uint8Array.from(values)
  if (dtype === 'i32') return new Uint8Array(Int32Array.from(values).buffer)
  const floats = Float32Array.from(values)
  if (dtype === 'f32') return new Uint8Array(floats.buffer)
  if (dtype === 'f16') return new Uint8Array(Uint16Array.from(floats, halfBits).buffer)
  // Values are rounded to the type already: the upper half has all of it.
  return new Uint8Array(Uint16Array.from(new Uint32Array(floats.buffer), (bits) => bits >>> 16).buffer)
}

export function decode(bytes: Uint8Array, dtype: DType): ArrayLike<number> {
  const { buffer } = bytes.slice()
  if (dtype === 'f32') return new Float32Array(buffer)
  if (dtype === 'i32') return new Int32Array(buffer)
  if (dtype === 'f16') return Float32Array.from(new Uint16Array(buffer), halfValue)
  return new Float32Array(Uint32Array.from(new Uint16Array(buffer), (half) => half << 16).buffer)
}

interface Result {
  kernel: string
  /** By tensor: made or updated. */
  values: Map<Tensor, ArrayLike<number>>
  /** Orders of the driver without a GPU that gave other bits. */
  differing: string[]
}

interface Machine {
  pool: PoolHandle
  memory: MemoryHandle
  tf32: boolean
  orders: readonly string[]
}

async function run(graph: Graph, values: ReadonlyMap<string, Float64Array>, { pool, memory, tf32, orders }: Machine) {
  const native = binding()
  const offsets = new Map<string, number>()
  let weightBytes = 0
  for (const t of [...graph.parameters, ...graph.buffers]) {
    offsets.set(t.name, weightBytes)
    weightBytes = align(weightBytes + 4 * elements(t.shape))
  }
  const placed = planMemory(graph, { weightOffsets: offsets, weightBytes })
  await native.ensureArena(memory, ARENA.weights, Math.max(weightBytes, 1))
  const plan = emit(graph, placed, { tf32 })
  const given = [...offsets].map(([name, offset]) => ({ offset, bytes: encode(values.get(name)!, 'f32') }))
  const input = new Uint8Array(placed.arenaBytes[ARENA.input]!)
  for (const t of graph.tensors) {
    if (t.role === 'input') input.set(encode(values.get(t.name)!, t.dtype), placed.placements.get(t.id)!.offset)
  }
  const executable = await native.bind(pool, memory, plan.bytes)
  try {
    const weights = new Uint8Array(weightBytes)
    const step = async (): Promise<Uint8Array> => {
      for (const { offset, bytes } of given) native.writeArena(memory, ARENA.weights, offset, bytes)
      native.invalidate(executable)
      const output = await native.step(executable, { bytes: input }, packScalars(SCALARS))
      native.readArena(memory, ARENA.weights, 0, weights)
      return output.slice()
    }
    const output = await step()
    const updated = weights.slice()
    const result: Result = { kernel: native.dump(executable)[0]!.kernel, values: new Map(), differing: [] }
    for (const order of orders) {
      process.env['FAKE_CUDA_ORDER'] = order
      const again = await step()
      if (Buffer.compare(again, output) !== 0 || Buffer.compare(weights, updated) !== 0) result.differing.push(order)
    }
    delete process.env['FAKE_CUDA_ORDER']
    for (const t of graph.tensors) {
      const bytes = BYTES[t.dtype] * elements(t.shape)
      if (t.role === 'output') {
        const { offset } = placed.placements.get(t.id)!
        result.values.set(t, decode(output.subarray(offset, offset + bytes), t.dtype))
      } else if (t.role === 'buffer' && graph.nodes[0]!.updates.includes(t)) {
        const offset = offsets.get(t.name)!
        result.values.set(t, decode(updated.subarray(offset, offset + bytes), 'f32'))
      }
    }
    return result
  } finally {
    native.closeExecutable(executable)
  }
}

/** Every value off by up to `share` of it. */
function perturbed(values: ReadonlyMap<string, Float64Array>, graph: Graph, share: number): Map<string, Float64Array> {
  const next = uniform(3)
  const floating = new Set(graph.tensors.filter((t) => t.dtype !== 'u8' && t.dtype !== 'i32').map((t) => t.name))
  return new Map(
    graph.tensors.flatMap((t) => {
      const given = values.get(t.name)
      return given ? [[t.name, floating.has(t.name) ? given.map((x) => x * (1 + share * next())) : given]] : []
    }),
  )
}

/** Whether its kernels of 16-bit types make a sigmoid of the one-instruction tanh; squeeze-and-excitation is FP32. */
const hasFastTanh = ({ op, attrs }: Node): boolean =>
  !op.startsWith('se_') &&
  ['act', 'src_act'].some((name) => attrs[name] === actCode('silu') || attrs[name] === actCode('sigmoid'))

/**
 * How far results may be off: by what they move when every operand moves by a few units in its last place (a gradient that
 * sums to nearly nothing moves much), and for a 16-bit result by its own rounding and by what a GPU's tanh moves it, which is off
 * by up to 2^-11 of its value (native/cuda/device/device.h): here each by all of that, to a side that chance picks. Three times what
 * this moves, since other sides move other results: of B0 in FP16 one tensor is off by more than twice it (cuda_perturbed.test.ts).
 */
function limits(graph: Graph, values: ReadonlyMap<string, Float64Array>, precision: LayerPrecision): (t: Tensor) => number {
  // TF32 has the digits of f16.
  const [share, times] = precision === 'f32' ? [2 ** -22, 8] : [precision === 'bf16' ? 2 ** -9 : 2 ** -12, 2]
  const exact = interpret(graph, { values, scalars: SCALARS })
  const studies = [{ times, moved: interpret(graph, { values: perturbed(values, graph, share), scalars: SCALARS }) }]
  if ((precision === 'bf16' || precision === 'f16') && graph.nodes.some(hasFastTanh)) {
    const next = uniform(5)
    const tanh = (x: number): number => Math.tanh(x) * (1 + 2 ** -11 * Math.sign(next()))
    studies.push({ times: 3, moved: withTanh(tanh, () => interpret(graph, { values, scalars: SCALARS })) })
  }
  return (t) => {
    const values = exact.get(t.name)!
    const moved = studies.map(({ times, moved }) => times * maxDifference(moved.get(t.name)!, values))
    return moved.reduce((a, b) => a + b) + 2 ** -22 * maxAbs(values)
  }
}

/** Largest difference, of a 16-bit tensor beyond one unit in its last place. */
export function error(got: ArrayLike<number>, want: Float64Array, dtype: DType): number {
  let worst = 0
  const unit = { bf16: 2 ** -8, f16: 2 ** -11, f32: 2 ** -23, i32: 0, u8: 0 }[dtype]
  for (let i = 0; i < want.length; i++) {
    const apart = difference(got[i]!, want[i]!)
    worst = Math.max(worst, apart === Infinity ? apart : apart - unit * Math.abs(want[i]!))
  }
  return worst
}

/** What an op is to a kernel: ops alike in this are tried once. */
function kindOf({ op, attrs, inputs, outputs }: Node): string {
  const { rng_stream: _, ...others } = attrs
  const shapes = [...inputs, ...outputs].map((t) => (t ? `${t.dtype}${t.shape}` : '-'))
  return [op, ...Object.values(others), ...shapes].join(' ')
}

export type LayerPrecision = 'f32' | 'tf32' | 'bf16' | 'f16'

export interface LayerCheck {
  model: string
  precision: LayerPrecision
  /** Default training. */
  program?: 'training' | 'inference'
  /** Pixels. */
  imageSize: number
  batchSize: number
  /** As in `createModel`. */
  device: string
  /** Of the driver without a GPU (FAKE_CUDA_ORDER): under each an op must give the bits of its first run. Default none. */
  orders?: readonly string[]
  /** Ops to try; default all. */
  only?: (op: string) => boolean
}

/** Those of a model. */
export function checkLayers(o: LayerCheck): Promise<Checked> {
  const config = getModelConfig(o.model)
  const common = {
    batchSize: o.batchSize,
    imageSize: o.imageSize,
    dtype: storage(o.precision),
    target: { device: 'cuda' },
  } as const
  const rates = { labelSmoothing: 0.1, dropRate: 0.2, dropPathRate: 0.2 }
  const graph =
    o.program === 'inference'
      ? evalProgram(config, common).graph
      : trainProgram(config, { ...common, ...rates, optimizer: { name: 'sgd' }, gradNorm: true, ema: false })
  return checkGraph(graph, o)
}

export const storage = (precision: LayerPrecision): 'f32' | 'bf16' | 'f16' => (precision === 'tf32' ? 'f32' : precision)

export interface Checked {
  /** Ops. */
  tried: number
  /** What ran them. */
  kernels: string[]
  /** For each tensor that is off further than it may be a line that says where and how far. */
  wrong: string[]
  /** By op: the largest share of its limit that a result was off by. */
  used: Map<string, number>
}

/** Every op of a graph that is fused and differentiated already. */
export async function checkGraph(
  graph: Graph,
  { precision, device, orders = [], only = () => true }: Omit<LayerCheck, 'model' | 'program' | 'imageSize' | 'batchSize'>,
): Promise<Checked> {
  const native = binding()
  const pool = native.createPool(1)
  const memory = native.createMemory(new Array(Object.keys(ARENA).length).fill(0), await native.openDevice(device))
  // The values behind a step's updates are not those that its ops have read.
  const types = new Map(graph.tensors.map((t) => [t.name, t.dtype]))
  const before = new Map([...networkValues(graph, 7)].map(([name, given]) => [name, rounded(given, types.get(name)!)]))
  const tf32 = precision === 'tf32'
  const oracle = { scalars: SCALARS, storage: 'as-typed', tf32 } as const
  const values = new Map([...interpret(graph, { values: before, ...oracle }), ...before])
  const seen = new Set<string>()
  const kernels: string[] = []
  const wrong: string[] = []
  const used = new Map<string, number>()
  try {
    for (const node of graph.nodes) {
      if (node.op.startsWith('optimizer_') || node.op === 'grad_norm' || seen.has(kindOf(node))) continue
      if (!only(node.op)) continue
      seen.add(kindOf(node))
      const one = alone(node)
      const { kernel, values: got, differing } = await run(one, values, { pool, memory, tf32, orders })
      kernels.push(kernel)
      if (differing.length > 0) wrong.push(`${node.name} ${kernel}: other bits under orders ${differing}`)
      const want = interpret(one, { values, ...oracle })
      const limit = limits(one, values, precision)
      for (const [t, result] of got) {
        const off = error(result, want.get(t.name)!, t.dtype)
        if (off > 0) used.set(node.op, Math.max(used.get(node.op) ?? 0, off / limit(t)))
        if (!(off <= limit(t))) wrong.push(`${node.name} ${kernel} ${t.name} [${t.shape}]: ${off} > ${limit(t)}`)
      }
    }
  } finally {
    native.closePool(pool)
    native.closeMemory(memory)
  }
  return { tried: seen.size, kernels, wrong, used }
}
