/** What holds in every graph between passes. A violation is a bug of a pass. */
import { EffnetError } from '../errors.js'
import type { Graph } from './graph.js'
import { OP_TABLE } from './op_table.js'
import { sameShape } from './ops/check.js'
import { opDef } from './ops/index.js'
import type { Node, Tensor } from './types.js'

const GIVEN: readonly Tensor['role'][] = ['input', 'parameter', 'buffer']
const NORMALISING = ['bn_apply', 'bn_act', 'bn_act_pool']

/** Throws EFF_INTERNAL, naming the node, at the first violation. */
export function verify(graph: Graph): void {
  const made = new Map<Tensor, Node>()
  const updated = new Set<Tensor>()
  checkNames(graph)
  for (const node of graph.nodes) {
    const fail = (why: string): never => {
      throw new EffnetError('EFF_INTERNAL', `graph ${graph.name}: ${node.op} "${node.name}": ${why}`)
    }
    checkPorts(node, fail)
    checkInputs(graph, node, made, updated, fail)
    checkShapes(node, fail)
    checkOutputs(graph, node, made, fail)
    checkNormalisation(node, made, fail)
    for (const t of node.updates) {
      if (t.role !== 'parameter' && t.role !== 'buffer') fail(`updates ${t.name}, which is neither parameter nor buffer`)
      if (updated.has(t)) fail(`updates ${t.name} a second time`)
      updated.add(t)
    }
  }
}

type Fail = (why: string) => never

function checkNames(graph: Graph): void {
  const lists = [graph.tensors.map((t) => t.name), graph.nodes.map((n) => n.name)]
  for (const names of lists) {
    const seen = new Set<string>()
    const twice = names.find((name) => seen.size === seen.add(name).size)
    if (twice !== undefined) throw new EffnetError('EFF_INTERNAL', `graph ${graph.name}: the name ${twice} is used twice`)
  }
  graph.tensors.forEach((t, i) => {
    if (t.id !== i) throw new EffnetError('EFF_INTERNAL', `graph ${graph.name}: tensor ${t.name} has id ${t.id} at place ${i}`)
  })
  graph.nodes.forEach((n, i) => {
    if (n.id !== i) throw new EffnetError('EFF_INTERNAL', `graph ${graph.name}: node ${n.name} has id ${n.id} at place ${i}`)
  })
}

function checkPorts(node: Node, fail: Fail): void {
  const info = OP_TABLE[node.op]
  for (const [kind, ports, given] of [
    ['input', info.inputs, node.inputs],
    ['output', info.outputs, node.outputs],
    ['update', info.updates, node.updates],
  ] as const) {
    const variadic = ports.at(-1)?.variadic ?? false
    const fixed = ports.length - (variadic ? 1 : 0)
    if (given.length < fixed || (!variadic && given.length !== fixed))
      fail(`${given.length} ${kind}s for ports ${ports.map((p) => p.name)}`)
    given.forEach((t, i) => {
      const port = ports[Math.min(i, ports.length - 1)]
      if (!t && (!port?.optional || i >= fixed)) fail(`${kind} ${port?.name} is missing`)
    })
  }
  const wanted = [...info.attrs].sort().join()
  const got = Object.keys(node.attrs).sort().join()
  if (wanted !== got) fail(`attributes ${got} instead of ${wanted}`)
}

function checkInputs(graph: Graph, node: Node, made: ReadonlyMap<Tensor, Node>, updated: ReadonlySet<Tensor>, fail: Fail): void {
  for (const t of node.inputs) {
    if (!t) continue
    if (graph.tensors[t.id] !== t) fail(`reads ${t.name} of another graph`)
    if (!GIVEN.includes(t.role) && !made.has(t)) fail(`reads ${t.name} before it is made`)
    if (node.prepare && t.role !== 'parameter' && t.role !== 'buffer' && t.role !== 'prepared') {
      fail(`runs only when weights change, but reads ${t.name} (${t.role})`)
    }
    // A weight must not change within a step while something still wants the old one; averages want the new one.
    if (t.role === 'parameter' && updated.has(t) && node.op !== 'ema_update') fail(`reads ${t.name} after its update`)
  }
}

function checkShapes(node: Node, fail: Fail): void {
  const hints = {
    shapes: node.outputs.map((t) => t?.shape ?? null),
    dtype: node.outputs.find(Boolean)?.dtype,
    updates: node.updates,
  }
  const specs = (() => {
    try {
      return opDef(node.op).infer(node.inputs, node.attrs, hints)
    } catch (error) {
      return fail((error as Error).message)
    }
  })()
  node.outputs.forEach((t, i) => {
    const spec = specs[i]
    if (t && !(spec && sameShape(spec.shape, t.shape) && spec.dtype === t.dtype)) {
      fail(`output ${t.name} is ${t.dtype}[${t.shape}], not ${spec?.dtype}[${spec?.shape}]`)
    }
  })
}

function checkOutputs(graph: Graph, node: Node, made: Map<Tensor, Node>, fail: Fail): void {
  for (const t of node.outputs) {
    if (!t) continue
    if (graph.tensors[t.id] !== t) fail(`writes ${t.name} of another graph`)
    if (GIVEN.includes(t.role)) fail(`writes ${t.name}, which is given (${t.role})`)
    const earlier = made.get(t)
    if (earlier) fail(`writes ${t.name}, which "${earlier.name}" made`)
    if (node.prepare !== (t.role === 'prepared'))
      fail(`${t.name} is ${t.role}, the node ${node.prepare ? 'a prepare node' : 'none of the prepare program'}`)
    if (
      t.role === 'gradient' &&
      !(t.of && graph.tensors[t.of.id] === t.of && sameShape(t.of.shape, t.shape) && t.dtype === 'f32')
    ) {
      fail(`the gradient ${t.name} has no parameter of its shape`)
    }
    made.set(t, node)
  }
}

/** What a node that makes batch statistics has them of, and their tensors. */
function statisticsOf({ op, inputs, outputs }: Node) {
  if (op === 'bn_stats') return { src: inputs[0], mean: outputs[0], invStd: outputs[1] }
  if (op.endsWith('conv2d_stats')) return { src: outputs[0], mean: outputs[1], invStd: outputs[2] }
  return undefined
}

/** What a node normalises, by which mean and inv_std, and whether its gradient rule takes them for statistics of it. */
function normalisationOf({ op, inputs, attrs }: Node) {
  if (NORMALISING.includes(op)) return { operands: inputs.slice(0, 3), batchStats: attrs['batch_stats'] === 1 }
  if (op === 'depthwise_conv2d_stats' && inputs[2]) return { operands: [inputs[0], inputs[2], inputs[3]], batchStats: true }
  return undefined
}

/** Batch statistics promise the gradient rule that mean and inv_std are statistics of src. */
function checkNormalisation(node: Node, made: ReadonlyMap<Tensor, Node>, fail: Fail): void {
  const normalisation = normalisationOf(node)
  if (!normalisation) return
  const [src, mean, invStd] = normalisation.operands
  const maker = made.get(mean!)
  const stats = maker && statisticsOf(maker)
  const ofSrc = stats?.src === src && stats?.mean === mean && stats?.invStd === invStd
  if (normalisation.batchStats && !ofSrc)
    fail(`batch_stats = 1, but ${mean!.name} and ${invStd!.name} are no statistics of ${src!.name}`)
  if (!normalisation.batchStats && stats) fail('batch_stats = 0 with statistics of a batch')
}
