/** `dump()`: the portable plan and this machine's binding, joined into one table. */
import type { DumpOp } from '../binding.js'
import type { Graph } from '../graph/graph.js'
import type { Tensor } from '../graph/types.js'
import type { MemoryPlan } from '../passes/plan_memory.js'

export interface DumpRow {
  name: string
  op: string
  /** Which code runs, instruction set included. */
  kernel: string
  /** e.g. "f32[8,112,112,32] f32[16,1,1,32] -> f32[8,112,112,16]"; of one image where the op runs image by image. */
  shapes: string
  /** How often it runs in a step: once, or once for each image (block-wise execution). */
  runs: number
  /** Operands read and written once in a step, of all images. */
  bytes: number
  /** A multiply-add counts 2. */
  flops: number
  /** Arena and byte offset of the first output, e.g. "activations+0"; empty for updates in place. */
  place: string
  /** `saved`: its result is read by the backward part; `recomputed`: made again there; `prepared`: only when weights change. */
  life: 'saved' | 'recomputed' | 'prepared' | ''
  /** Mean per step while profiling; 0 without. Where threads run an image each: the time of all threads over their number. */
  ms: number
}

const ARENA_NAMES = ['weights', 'grads', 'moment0', 'moment1', 'ema', 'activations', 'prepared', 'input', 'output', 'image']

const show = (t: Tensor, ofOneImage = false): string => `${t.dtype}[${ofOneImage ? [1, ...t.shape.slice(1)] : t.shape}]`

export function dumpRows(graph: Graph, memory: MemoryPlan, native: readonly DumpOp[]): DumpRow[] {
  const readInBackward = new Set<Tensor>()
  for (const node of graph.nodes) if (node.backward) for (const t of node.inputs) if (t) readInBackward.add(t)
  const nodes = [...graph.nodes.filter((n) => n.prepare), ...graph.nodes.filter((n) => !n.prepare)]
  const { region } = memory
  const ops = nodes.map((node, i): DumpRow => {
    const row = native[i]!
    const outputs = node.outputs.filter((t) => t !== null)
    const inputs = node.inputs.filter((t) => t !== null)
    // Lists of hundreds of parameters say nothing in a table.
    const inRegion = region?.nodes.has(node) ?? false
    const shown = (t: Tensor): string => show(t, inRegion && region!.tensors.has(t))
    const list = (ts: readonly Tensor[]) => (ts.length > 8 ? `${ts.length} tensors` : ts.map(shown).join(' '))
    const first = outputs[0] && memory.placements.get(outputs[0].id)
    const saved = !node.backward && outputs.some((t) => readInBackward.has(t))
    return {
      name: node.name,
      op: node.op,
      kernel: row.kernel,
      shapes: `${list(inputs)} -> ${list(outputs)}`,
      runs: inRegion ? region!.images : 1,
      bytes: row.bytes,
      flops: row.flops,
      place: first ? `${ARENA_NAMES[first.arena]}+${first.offset}` : '',
      life: node.prepare ? 'prepared' : node.recomputed ? 'recomputed' : saved ? 'saved' : '',
      ms: row.ms,
    }
  })
  return [...ops, ...native.slice(nodes.length).map(besidePlan)]
}

/** What a backend does beside the plan's ops: copies of weights that have changed, the ends of a step. */
function besidePlan({ name, op, kernel, bytes, flops, ms }: DumpOp): DumpRow {
  const life = op === 'cast_weights' ? 'prepared' : ''
  return { name, op, kernel, shapes: '', runs: 1, bytes, flops, place: '', life, ms }
}
