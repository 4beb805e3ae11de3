import type { ImageDataset } from '../data/types.js'
import { EffnetError } from '../errors.js'
import { cpuDecodedText } from '../machine_text.js'
import { defineVerb } from './call.js'
import { EXIT } from './exit.js'
import { checkDeviceOption, headerLine, modelLine, openModel } from './model_source.js'
import { CROPS, DATA_BACKEND, defineOptions, ENGINE, EXIF, WEIGHTS } from './options.js'
import { shown } from './paths_ui.js'
import { bar, duration, grouped } from './ui.js'

const options = defineOptions({
  data: { kind: 'text', value: 'DIR', help: 'folder with val/ (or validation/), or the folder of classes itself' },
  ...WEIGHTS,
  ...CROPS,
  valSplit: { kind: 'number', value: 'X', min: 0, above: true, max: 0.999, help: 'hold out this share where there is no val/' },
  seed: { kind: 'int', value: 'S', min: 0, env: ['EFFNET_SEED'], shown: '0', help: 'of --val-split' },
  maxBad: { kind: 'number', value: 'X', min: 0, help: 'unreadable files allowed: a count, or a share below 1', shown: '0.001' },
  ...DATA_BACKEND,
  ...EXIF,
  ...ENGINE,
})

const otherClasses = (data: ImageDataset, has: number): EffnetError =>
  new EffnetError('EFF_DATA_LABEL', `${shown(data.root)}: ${data.classes.length} classes, the model has ${has}`, {
    hint: 'give the checkpoint that was trained on these classes, or train one: effnet train --data DIR --model NAME --weights FILE',
    details: { data: data.classes.length, model: has },
  })

export const verb = defineVerb(
  {
    name: 'eval',
    summary: 'accuracy of a checkpoint or of weights on a folder of images',
    examples: [
      'effnet eval --data photos --checkpoint runs/first/checkpoints/best',
      'effnet eval --data imagenet/val --model tf_efficientnet_b0 --weights b0.safetensors --json',
    ],
    options,
  },
  async ({ options: o, ui }) => {
    if (o.data === undefined) {
      throw new EffnetError('EFF_CONFIG_VALUE', 'effnet eval needs --data', {
        hint: '--data DIR   with val/, or a folder a class',
      })
    }
    await checkDeviceOption(o.device)
    ui.line(await headerLine(o, ui))
    const { imageFolder } = await import('../data/image_folder.js')
    const data = await imageFolder(o.data, {
      split: 'val',
      ...(o.valSplit === undefined ? {} : { valSplit: o.valSplit }),
      ...(o.seed === undefined ? {} : { seed: o.seed }),
    })
    ui.line(`data   ${shown(data.root)} ${grouped(data.length)} images, ${grouped(data.classes.length)} classes`)
    const model = await openModel(o, ui)
    try {
      ui.line(await modelLine(model, o.imageSize ?? model.config.evalSize))
      if (data.classes.length !== model.config.numClasses) throw otherClasses(data, model.config.numClasses)
      const { evaluateModel } = await import('../train/evaluate.js')
      const started = performance.now()
      const result = await evaluateModel(model, {
        data,
        details: false,
        ...(o.exif === undefined ? {} : { exifOrientation: o.exif === 'on' }),
        ...(o.batchSize === undefined ? {} : { batchSize: o.batchSize }),
        ...(o.imageSize === undefined ? {} : { imageSize: o.imageSize }),
        ...(o.cropPct === undefined ? {} : { cropPct: o.cropPct }),
        ...(o.maxBad === undefined ? {} : { maxBad: o.maxBad }),
        ...(o.dataBackend === undefined ? {} : { dataBackend: o.dataBackend }),
        onProgress: (done, total) =>
          ui.progress(() => {
            const seconds = (performance.now() - started) / 1e3
            return [
              { text: bar(done / total, 20), rank: 95 },
              { text: `${grouped(done)}/${grouped(total)}`, rank: 0 },
              { text: `${grouped(done / seconds)} img/s`, rank: 1 },
              { text: `eta ${duration((seconds * (total - done)) / Math.max(1, done))}`, rank: 2 },
            ]
          }),
      })
      const { metrics, images, imagesPerS, badFiles, cpuDecodedFiles } = result
      const text = ['val/top1', 'val/top5'].map((k) => `${k} ${metrics[k]!.toFixed(2)} %`).join(' · ')
      if (!ui.json)
        ui.answer(`${text} · val/loss ${metrics['val/loss']!.toFixed(5)} · ${images} images · ${grouped(imagesPerS)} img/s`)
      for (const bad of badFiles) ui.warn(bad.code, `${bad.code}  ${shown(bad.path)}: ${bad.message}`)
      if (cpuDecodedFiles) ui.line(`gpu    ${cpuDecodedText(cpuDecodedFiles, grouped(cpuDecodedFiles))}`)
      ui.warningsLeft()
      ui.object({
        result: {
          status: 'finished',
          metrics,
          images,
          images_per_s: imagesPerS,
          bad_files: badFiles.length,
          ...(cpuDecodedFiles === undefined ? {} : { cpu_decoded_files: cpuDecodedFiles }),
          model: model.config.name,
          ...(o.checkpoint === undefined ? {} : { checkpoint: o.checkpoint }),
        },
      })
      return EXIT.ok
    } finally {
      await model.close()
    }
  },
)
