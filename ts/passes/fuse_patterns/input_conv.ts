/**
 * Where convolutions alone read the normalised input, on GPUs they read its uint8 images themselves: the tensor in between would
 * be written once and read twice in training, at two or four times the bytes. To be applied behind `convStats` and autodiff, or
 * behind folding.
 */
import { OP_TABLE, type OpName } from '../../graph/op_table.js'
import type { Node, Tensor } from '../../graph/types.js'
import type { Rewriter } from '../rewrite.js'
import type { Pattern } from './pattern.js'

const READING_PIXELS: Partial<Record<OpName, OpName>> = {
  conv2d_stats: 'input_conv2d_stats',
  conv2d_bias_act: 'input_conv2d_bias_act',
  conv2d_bwd_weights: 'input_conv2d_bwd_weights',
}

/** Whether `node` is a convolution of `images` with nothing else done to them. */
function convolvesOnly(node: Node, images: Tensor): boolean {
  const op = READING_PIXELS[node.op]
  if (!op || node.inputs[0] !== images || node.inputs.lastIndexOf(images) !== 0) return false
  return node.inputs.slice(OP_TABLE[op].inputs.length).every((t) => t === null)
}

function emitReadingPixels(conv: Node, normalize: Node, rewriter: Rewriter): void {
  const { src_act: _, ...attrs } = conv.attrs
  const inputs = {
    ...rewriter.inputs({ ...conv, inputs: conv.inputs.with(0, null) }),
    src: rewriter.to(normalize.inputs[0]!),
  }
  const ports = OP_TABLE[conv.op].outputs
  const into = Object.fromEntries(ports.map((port, i) => [port.name, rewriter.define(conv.outputs[i]!)]))
  rewriter.graph.node(
    READING_PIXELS[conv.op]!,
    inputs,
    { ...attrs, ...normalize.attrs },
    { name: conv.name, backward: conv.backward, updates: conv.updates.map((t) => rewriter.to(t)), into },
  )
}

export const inputInConvolutions: Pattern = {
  name: 'input_in_convolutions',
  applies: (target) => target.device === 'cuda',
  match(normalize, view) {
    if (normalize.op !== 'input_normalize') return null
    const images = normalize.outputs[0]!
    const readers = view.readers(images)
    if (view.escapes(images) || !readers.every((n) => view.isFree(n) && convolvesOnly(n, images))) return null
    return {
      removes: [normalize, ...readers],
      emits: readers.map((conv) => ({ at: conv, run: (rewriter) => emitReadingPixels(conv, normalize, rewriter) })),
    }
  },
}
