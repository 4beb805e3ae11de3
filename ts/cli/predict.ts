import type { PredictionError, PredictionResult } from '../infer/types.js'
import { defineVerb } from './call.js'
import { EXIT, exitCodeOf } from './exit.js'
import { checkDeviceOption, openModel } from './model_source.js'
import { CROPS, defineOptions, ENGINE, EXIF, WEIGHTS } from './options.js'
import { printable } from './paths_ui.js'
import type { Ui } from './ui.js'

const options = defineOptions({
  ...WEIGHTS,
  topK: { kind: 'int', value: 'K', min: 1, shown: '5', help: 'classes named for each image' },
  logits: { kind: 'flag', help: 'the logits of every class too (--json)' },
  ...CROPS,
  ...EXIF,
  ...ENGINE,
})

/** One image: a JSON object, or its classes under its name. */
function print(ui: Ui, result: PredictionResult): void {
  const path = result.path ?? ''
  if (result.error) {
    ui.object({ path, error: { code: result.error.code, message: result.error.message } })
    const { code, message } = result.error
    // Messages of files begin with their path.
    const whole = message.includes(path) ? message : `${path}: ${message}`
    if (!ui.json) ui.error(`${ui.paint.red(code)}  ${printable(whole)}\n`)
    return
  }
  if (ui.json) {
    ui.object({ path, topk: result.topk, ...(result.logits ? { logits: Array.from(result.logits) } : {}) })
    return
  }
  ui.answer(ui.paint.bold(printable(path)))
  for (const { index, label, score } of result.topk) {
    ui.answer(
      `  ${(100 * score).toFixed(2).padStart(6)} %  ${label === undefined ? `class ${index}` : printable(label)}${label ? ui.paint.dim(`  ${index}`) : ''}`,
    )
  }
}

const DENIED = /\bE(ACCES|PERM)\b/

const exitOf = ({ code, message }: PredictionError['error']): number =>
  DENIED.test(message) ? EXIT.permission : code === 'EFF_NAN' ? EXIT.malformed : exitCodeOf(code)

const MENDS: Readonly<Record<string, string>> = {
  EFF_DATA_DECODE: 'replace the files, or convert them: JPEG is read; PNG, WebP, GIF, TIFF and AVIF where sharp is installed',
  EFF_DATA_LIMIT: 'make smaller copies of the images',
  EFF_DATA_MISSING: 'check the paths; they are relative to ',
  EFF_IO: 'give this user access to the files (ls -l shows the owner), or check the disk',
  EFF_NAN: 'use another checkpoint of the run (checkpoints/best), or another weights file',
}

/** A mend for each kind of failure, once. */
function mendsOf(failed: readonly PredictionError['error'][]): string {
  const codes = [...new Set(failed.map((f) => f.code))]
  const mends = codes.map((code) => (code === 'EFF_DATA_MISSING' ? `${MENDS[code]}${process.cwd()}` : MENDS[code]))
  return mends.map((mend) => (mend ? `  Mend: ${mend}\n` : '')).join('')
}

export const verb = defineVerb(
  {
    name: 'predict',
    summary: 'name what is on images',
    examples: ['effnet predict photo.jpg', "effnet predict --checkpoint runs/first/checkpoints/best --json 'photos/**/*.jpg'"],
    options,
    positional: {
      usage: 'PATH...',
      min: 1,
      help: 'name image files, a folder of them, or a quoted glob: effnet predict photo.jpg',
    },
    notes: [
      "Without --model and --checkpoint: tf_efficientnet_b0 with the package's ImageNet weights.",
      'Images are decoded on the CPU, with --device cuda too.',
      'Exit 65: some unreadable.',
    ],
  },
  async ({ options: o, args, ui }) => {
    await checkDeviceOption(o.device)
    const { expandInputs } = await import('./inputs.js')
    const files = await expandInputs(args)
    const model = await openModel(o, ui)
    const failed: PredictionError['error'][] = []
    try {
      const results = model.predictStream(files, {
        ...(o.topK === undefined ? {} : { topK: o.topK }),
        ...(o.batchSize === undefined ? {} : { batchSize: o.batchSize }),
        ...(o.imageSize === undefined ? {} : { imageSize: o.imageSize }),
        ...(o.cropPct === undefined ? {} : { cropPct: o.cropPct }),
        logits: o.logits,
        ...(o.exif === undefined ? {} : { exifOrientation: o.exif === 'on' }),
      })
      for await (const result of results) {
        if (result.error) failed.push(result.error)
        print(ui, result)
        // Whoever read has what it wanted (`| head -1`).
        if (ui.outputClosed) return EXIT.ok
      }
    } finally {
      await model.close()
    }
    if (failed.length === 0) return EXIT.ok
    ui.error(`${failed.length} of ${files.length} images could not be read\n${ui.json ? '' : mendsOf(failed)}`)
    const exits = new Set(failed.map(exitOf))
    return exits.size === 1 ? [...exits][0]! : EXIT.malformed
  },
)
