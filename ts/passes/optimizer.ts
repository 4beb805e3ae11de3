/** Appends the update of parameters to a graph that has gradients. */
import { EffnetError } from '../errors.js'
import type { Graph } from '../graph/graph.js'
import type { Tensor } from '../graph/types.js'
import { type Parts, parted } from '../turns.js'

export interface OptimizerSpec {
  /** `rmsprop_tf` has eps inside the root and lr inside the momentum buffer; `rmsprop` is torch's. */
  name: 'sgd' | 'rmsprop' | 'rmsprop_tf' | 'adamw'
  /** SGD only. */
  nesterov?: boolean
  /** Whether the norm of the gradients is taken, one more pass over them; updates then clip where the scalar `clip_norm` is above 0. */
  gradNorm?: boolean
  /** Whether a moving average of all parameters and buffers is kept. */
  ema?: boolean
  /** Parameters with weight decay. Default: matrices and convolution weights, but neither biases nor BN's vectors, as in timm. */
  decays?: (parameter: Tensor) => boolean
}

/**
 * Appends grad_norm (with `gradNorm`), an update for each decay group, and with `ema` averaging: in the update, of what is updated, and in
 * an ema_update of the rest. Throws EFF_INTERNAL without gradients.
 */
export const appendOptimizer = parted(function* (graph: Graph, spec: OptimizerSpec): Parts<void> {
  const gradients = graph.tensors.filter((t) => t.role === 'gradient')
  if (gradients.length === 0) throw new EffnetError('EFF_INTERNAL', `graph ${graph.name} has no gradients to update from`)
  const decays = spec.decays ?? ((p) => p.shape.length > 1)
  const norm = spec.gradNorm
    ? graph.node('grad_norm', { grad: gradients }, {}, { name: 'grad_norm', outputNames: { norm: 'grad_norm' } })['norm']
    : null
  const inOrder = byParameter(graph, gradients)
  for (const decayMult of [1, 0]) {
    yield
    const group = inOrder.filter((t) => decays(t.of!) === (decayMult === 1))
    if (group.length === 0) continue
    const { op, attrs } = formOf(spec)
    graph.node(
      op,
      { norm, grad: group },
      { ...attrs, decay_mult: decayMult, ema: spec.ema ? 1 : 0 },
      {
        name: decayMult === 1 ? 'optimizer' : 'optimizer.no_decay',
        updates: group.map((t) => t.of!),
      },
    )
  }
  yield
  const updated = new Set(gradients.map((t) => t.of))
  const rest = [...graph.parameters, ...graph.buffers].filter((t) => !updated.has(t))
  if (spec.ema && rest.length > 0) graph.node('ema_update', { src: rest }, {}, { name: 'ema' })
})

/** In the order of the parameters, so that neighbours in the arenas are neighbours in the list. */
const byParameter = (graph: Graph, gradients: readonly Tensor[]): Tensor[] => {
  const place = new Map(graph.parameters.map((p, i) => [p, i]))
  return gradients.toSorted((a, b) => place.get(a.of!)! - place.get(b.of!)!)
}

function formOf(spec: OptimizerSpec): {
  op: 'optimizer_sgd' | 'optimizer_rmsprop' | 'optimizer_adamw'
  attrs: Record<string, number>
} {
  switch (spec.name) {
    case 'sgd':
      return { op: 'optimizer_sgd', attrs: { nesterov: spec.nesterov ? 1 : 0 } }
    case 'rmsprop':
      return { op: 'optimizer_rmsprop', attrs: { tf_form: 0 } }
    case 'rmsprop_tf':
      return { op: 'optimizer_rmsprop', attrs: { tf_form: 1 } }
    case 'adamw':
      return { op: 'optimizer_adamw', attrs: {} }
  }
}
