/** Files of a model's weights under any library's names, as transfers for native code. */
import { ARENA, type FileSpec } from '../binding.js'
import type { ModelConfig } from '../nn/config.js'
import { modelParams, type ParamDef } from '../nn/params.js'
import { transferOf } from './load.js'
import { type Naming, tensorNames } from './names.js'
import { layoutSafetensors } from './safetensors.js'

interface Layout {
  readonly header: Uint8Array
  readonly dataBytes: number
  readonly tensors: readonly { readonly param: ParamDef; readonly begin: number }[]
}

function layOut(config: ModelConfig, naming: Naming): Layout {
  const params = modelParams(config)
  const names = tensorNames(config, naming)
  const metadata = { architecture: config.name, format: 'pt', naming, num_classes: String(config.numClasses) }
  // NVIDIA's squeeze layers are matrices, the others' 1x1 convolutions.
  const shapeOf = (p: ParamDef) => (naming === 'nvidia-pytorch' && p.info.kind === 'se_weights' ? p.shape : p.info.torchShape)
  const tensors = params.map((p, i) => ({ name: names[i]!, dtype: 'F32' as const, shape: shapeOf(p) }))
  const { header, dataBytes, tensors: entries } = layoutSafetensors(tensors, metadata)
  const byName = new Map(params.map((p, i) => [names[i]!, p]))
  return { header, dataBytes, tensors: entries.map((t) => ({ param: byName.get(t.name)!, begin: t.begin })) }
}

/**
 * A `model.safetensors` of FP32 tensors in OIHW layout, under timm's names by default, from `arena` (weights, or EMA). The bytes
 * depend on the weights, the model's name, its class count and the naming alone. `num_batches_tracked` is left out: PyTorch's
 * batch normalisation fills it in when a state_dict without version metadata, as every safetensors file is, lacks it; strict loading works.
 */
export function modelFile(
  path: string,
  config: ModelConfig,
  offsetOf: (name: string) => number,
  options: { arena?: number; naming?: Naming } = {},
): FileSpec {
  const { arena = ARENA.weights, naming = 'timm' } = options
  const { header, dataBytes, tensors } = layOut(config, naming)
  return {
    path,
    header,
    dataBytes,
    tensors: tensors.map(({ param, begin }) => transferOf(param, { arena, offset: offsetOf(param.name) }, begin, 'F32')),
  }
}
