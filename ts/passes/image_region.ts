/**
 * Block-wise execution: the part of a graph that may run image by image, all its nodes for one image before the next. An image's
 * wide tensors then stay in a core's cache, threads take an image each without waiting for one another, and memory is that of
 * the images in work instead of the batch.
 */
import type { Graph } from '../graph/graph.js'
import { OP_TABLE } from '../graph/op_table.js'
import type { Node, Tensor } from '../graph/types.js'

export interface ImageRegion {
  /** Consecutive nodes of the step. */
  readonly nodes: ReadonlySet<Node>
  readonly images: number
  /** Tensors of the batch that these nodes read or write; each run sees the part of its image. Everything else they only read. */
  readonly tensors: ReadonlySet<Tensor>
  /** Of these, the ones that nobody outside needs: only the part of an image in work exists. */
  readonly inner: ReadonlySet<Tensor>
}

/**
 * From the first node that reads the input through the last that touches images (rank 4), or up to the first that needs more
 * than one image of the batch. What follows on [N, C] stays together: there the weights are the traffic, and the batch shares
 * them. Null for one image, or where there is nothing to gain.
 */
export function imageRegion(graph: Graph): ImageRegion | null {
  const step = graph.nodes.filter((n) => !n.prepare)
  const start = step.findIndex((n) => n.inputs.some((t) => t?.role === 'input'))
  const images = step[start]?.inputs.find((t) => t?.role === 'input')?.shape[0] ?? 0
  if (images < 2) return null
  const tensors = new Set<Tensor>()
  let end = start
  for (let i = start; i < step.length; i++) {
    const own = imageTensors(step[i]!, images, tensors)
    if (!own) break
    for (const t of own) tensors.add(t)
    if (own.some((t) => t.shape.length === 4)) end = i + 1
  }
  const nodes = new Set(step.slice(start, end))
  if (nodes.size < 2) return null
  const outside = new Set(step.filter((n) => !nodes.has(n)).flatMap((n) => [...n.inputs, ...n.outputs]))
  const touched = new Set([...nodes].flatMap((n) => [...n.inputs, ...n.outputs]).filter((t) => t && tensors.has(t)) as Tensor[])
  const inner = new Set([...touched].filter((t) => t.role === 'activation' && !outside.has(t)))
  return { nodes, images, tensors: touched, inner }
}

/** Of a node that needs one image at a time: its tensors that belong to the batch, given those made before it. */
function imageTensors(node: Node, images: number, made: ReadonlySet<Tensor>): Tensor[] | null {
  if (!OP_TABLE[node.op].imageWise || node.updates.length > 0 || (node.attrs['drop_rate'] ?? 0) > 0) return null
  const sources = node.inputs.filter((t): t is Tensor => t != null && (t.role === 'input' || made.has(t)))
  const own = [...sources, ...node.outputs.filter((t): t is Tensor => t != null)]
  return sources.length > 0 && own.every((t) => t.shape[0] === images) ? own : null
}
