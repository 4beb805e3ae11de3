import { EffnetError } from '../errors.js'
import { nearest } from '../nearest.js'
import { bundledFile } from '../weights/bundled.js'
import { defineVerb } from './call.js'
import { EXIT } from './exit.js'
import { defineOptions } from './options.js'
import type { Ui } from './ui.js'

const options = defineOptions({
  imageSize: { kind: 'int', value: 'N', min: 32, max: 4096, help: 'side in pixels that GFLOPs refer to', shown: 'the model’s' },
  numClasses: { kind: 'int', value: 'N', min: 1, max: 1_000_000, help: 'classes of the head', shown: '1000' },
})

interface Sizes {
  imageSize?: number
  numClasses?: number
}

async function rowsOf(names: readonly string[], sizes: Sizes) {
  const { modelInfo } = await import('../nn/index.js')
  return names.map((name) => {
    const info = modelInfo(name, sizes)
    const weights = bundledFile(name)
    return {
      name,
      params: info.params,
      image_size: info.imageSize,
      eval_size: info.evalSize,
      gflops: Number(info.gflops.toPrecision(6)),
      num_classes: info.numClasses,
      ...(weights ? { weights } : {}),
    }
  })
}

async function list(ui: Ui, filter: string | undefined, sizes: Sizes): Promise<number> {
  const { listModels } = await import('../nn/index.js')
  const names = listModels(filter)
  if (names.length === 0) {
    const close = nearest(filter ?? '', listModels(), 3)
    throw new EffnetError('EFF_MODEL_UNKNOWN', `no model matches '${filter}'`, {
      hint: close.length > 0 ? `did you mean ${close.join(', ')}?` : `a glob over the names: effnet models list '*_b0'`,
    })
  }
  const rows = await rowsOf(names, sizes)
  if (ui.json) {
    for (const row of rows) ui.object(row)
    return EXIT.ok
  }
  ui.table(
    [
      { title: 'model' },
      { title: 'params', align: 'right' },
      { title: 'size', align: 'right' },
      { title: 'GFLOPs', align: 'right' },
      { title: 'weights' },
    ],
    rows.map((r) => [
      r.name,
      `${(r.params / 1e6).toFixed(2)} M`,
      String(r.image_size),
      r.gflops.toFixed(2),
      r.weights ? 'with the package' : '',
    ]),
  )
  ui.line(ui.paint.dim('size: side of training images; GFLOPs: 1e9 multiply-accumulates of one image of that size'))
  return EXIT.ok
}

async function show(ui: Ui, name: string, sizes: Sizes): Promise<number> {
  const { getModelConfig } = await import('../nn/index.js')
  const config = getModelConfig(name, sizes)
  const [row] = await rowsOf([name], sizes)
  const { preprocessing } = config
  const shown = {
    ...row!,
    family: config.family,
    padding: config.padding,
    bn_eps: config.bnEps,
    bn_momentum: config.bnMomentum,
    activation: config.act,
    drop_rate: config.dropRate,
    drop_path_rate: config.dropPathRate,
    mean: preprocessing.mean,
    std: preprocessing.std,
    interpolation: preprocessing.interpolation,
    crop_pct: Number(preprocessing.cropPct.toFixed(6)),
  }
  if (ui.json) ui.object(shown)
  else
    for (const [key, value] of Object.entries(shown))
      ui.answer(`${key.padEnd(15)} ${Array.isArray(value) ? value.join(', ') : value}`)
  return EXIT.ok
}

export const verb = defineVerb(
  {
    name: 'models',
    summary: 'list the models (a glob filters), or show one',
    examples: ["effnet models list 'efficientnetv2_*'", 'effnet models show efficientnet_b0 --json'],
    options,
    positional: { usage: 'list [GLOB] | show NAME', min: 0, max: 2, help: 'effnet models list, or effnet models show NAME' },
  },
  async ({ args, options: { imageSize, numClasses }, ui }) => {
    const [action = 'list', name] = args
    const sizes = { ...(imageSize ? { imageSize } : {}), ...(numClasses ? { numClasses } : {}) }
    if (action === 'list') return list(ui, name, sizes)
    if (action === 'show') {
      if (name === undefined) {
        throw new EffnetError('EFF_CONFIG_VALUE', 'effnet models show needs a NAME', { hint: 'effnet models list   names all' })
      }
      return show(ui, name, sizes)
    }
    const close = nearest(action, ['list', 'show'], 1)[0]
    throw new EffnetError('EFF_CONFIG_KEY', `effnet models has no '${action}'`, {
      hint: `did you mean effnet models ${close ?? (action.includes('_') ? `show ${action}` : 'list')}?`,
    })
  },
)
