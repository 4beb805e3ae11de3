/** A graph as text, one line a node. */
import type { Graph } from './graph.js'
import { OP_TABLE, type OpPort } from './op_table.js'
import { opDef } from './ops/index.js'
import { ACTIVATIONS, type Node, type Tensor } from './types.js'

const tensor = (t: Tensor): string => `${t.name}:${t.dtype}[${t.shape.join('x')}]`

function operands(ports: readonly OpPort[], given: readonly (Tensor | null)[]): string {
  return given
    .map((t, i) => (t ? `${ports[Math.min(i, ports.length - 1)]!.name}=${tensor(t)}` : ''))
    .filter(Boolean)
    .join(' ')
}

const attribute = ([name, value]: [string, number]): string => `${name}=${name === 'act' ? ACTIVATIONS[value] : value}`

/** `name = op(inputs) {attributes} -> outputs`, with what the node updates in place and how it is marked. */
function printNode(node: Node): string {
  const info = OP_TABLE[node.op]
  const attrs = Object.entries(node.attrs).map(attribute).join(' ')
  const marks = [node.prepare && 'prepare', node.recomputed ? 'recomputed' : node.backward && 'backward']
    .filter(Boolean)
    .join(' ')
  const flops = opDef(node.op).flops?.(node) ?? 0
  return [
    `${node.name}: ${node.op}(${operands(info.inputs, node.inputs)})`,
    attrs && `{${attrs}}`,
    node.outputs.some(Boolean) && `-> ${operands(info.outputs, node.outputs)}`,
    node.updates.length > 0 && `updates ${node.updates.map((t) => t.name).join(' ')}`,
    flops > 0 && `${(flops / 1e6).toPrecision(3)} MFLOP`,
    marks && `[${marks}]`,
  ]
    .filter(Boolean)
    .join(' ')
}

export function print(graph: Graph): string {
  const head = `graph ${graph.name}: ${graph.nodes.length} nodes, ${graph.tensors.length} tensors`
  return [head, ...graph.nodes.map((node, i) => `${String(i).padStart(4)} ${printNode(node)}`)].join('\n')
}
