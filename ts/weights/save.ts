/** Files of a model's weights under timm's names, as transfers for native code. */
import { ARENA, type FileSpec } from '../binding.js'
import type { ModelConfig } from '../nn/config.js'
import { modelParams, type ParamDef } from '../nn/params.js'
import { transferOf } from './load.js'
import { layoutSafetensors } from './safetensors.js'

interface Layout {
  readonly header: Uint8Array
  readonly dataBytes: number
  readonly tensors: readonly { readonly param: ParamDef; readonly begin: number }[]
}

/** Saving happens between steps: a configuration's layout is made once. */
const layouts = new WeakMap<ModelConfig, Layout>()

function layoutOf(config: ModelConfig): Layout {
  let layout = layouts.get(config)
  if (!layout) {
    const params = modelParams(config)
    const metadata = { architecture: config.name, format: 'pt', naming: 'timm', num_classes: String(config.numClasses) }
    const tensors = params.map((p) => ({ name: p.name, dtype: 'F32' as const, shape: p.info.torchShape }))
    const { header, dataBytes, tensors: entries } = layoutSafetensors(tensors, metadata)
    const byName = new Map(params.map((p) => [p.name, p]))
    layout = { header, dataBytes, tensors: entries.map((t) => ({ param: byName.get(t.name)!, begin: t.begin })) }
    layouts.set(config, layout)
  }
  return layout
}

/**
 * A `model.safetensors` of FP32 tensors in OIHW layout under timm's names, from `arena` (weights, or EMA). The bytes depend on
 * the weights, the model's name and its class count alone. `num_batches_tracked` is left out: PyTorch's batch normalisation
 * fills it in when a state_dict without version metadata, as every safetensors file is, lacks it; strict loading works.
 */
export function modelFile(
  path: string,
  config: ModelConfig,
  offsetOf: (name: string) => number,
  arena: number = ARENA.weights,
): FileSpec {
  const { header, dataBytes, tensors } = layoutOf(config)
  return {
    path,
    header,
    dataBytes,
    tensors: tensors.map(({ param, begin }) => transferOf(param, { arena, offset: offsetOf(param.name) }, begin, 'F32')),
  }
}
