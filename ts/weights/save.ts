/** Files of a model's weights under timm's names, as transfers for native code. */
import { ARENA, type FileSpec } from '../binding.js'
import type { ModelConfig } from '../nn/config.js'
import { modelParams } from '../nn/params.js'
import { transferOf } from './load.js'
import { layoutSafetensors } from './safetensors.js'

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
  const params = modelParams(config)
  const tensors = params.map((p) => ({ name: p.name, dtype: 'F32' as const, shape: p.info.torchShape }))
  const metadata = { architecture: config.name, format: 'pt', naming: 'timm', num_classes: String(config.numClasses) }
  const layout = layoutSafetensors(tensors, metadata)
  const byName = new Map(params.map((p) => [p.name, p]))
  return {
    path,
    header: layout.header,
    dataBytes: layout.dataBytes,
    tensors: layout.tensors.map((t) => transferOf(byName.get(t.name)!, { arena, offset: offsetOf(t.name) }, t.begin, 'F32')),
  }
}
