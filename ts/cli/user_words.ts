/**
 * The library's messages in the words of the command line: who typed `--batch-size` is not told of `batchSize`. The library
 * speaks to programs; these rules are the only place that knows both.
 */

/** Options of the public API and their spelling here; an empty flag has none. */
const FLAGS: Readonly<Record<string, string>> = {
  accumulate: '--accumulate',
  batchSize: '--batch-size',
  evalBatchSize: '--batch-size',
  checkpointEvery: '--checkpoint-every',
  clipNorm: '--clip-norm',
  cropPct: '--crop-pct',
  dataBackend: '--data-backend',
  dropPathRate: '--drop-path-rate',
  dropRate: '--drop-rate',
  evalImageSize: '--image-size',
  exifOrientation: '--exif',
  imageSize: '--image-size',
  labelSmoothing: '--label-smoothing',
  logEvery: '--log-every',
  maxBad: '--max-bad',
  maxEpochs: '--epochs',
  maxSteps: '--max-steps',
  maxTime: '--max-time',
  memoryLimit: '--memory-limit',
  numClasses: '--num-classes',
  outDir: '--out',
  topK: '--top-k',
  valSplit: '--val-split',
  warmupEpochs: '--warmup-epochs',
  weightDecay: '--weight-decay',
}

/** Calls that a command line cannot make, and what it can do instead. */
const CALLS: readonly [RegExp, string][] = [
  // A hint that already says both: the form in brackets is ours.
  [/^[^()]*(?:\([^()]*\))?[^()]* {2,}\((--[^)]*)\)$/, '$1'],
  [/^model\.freeze with the same selection \(--freeze\)$/, '--freeze with the same selection'],
  [/(?:\bvalSplit|\bresume: 'auto') \((--[^)]*)\)/g, '$1'],
  [/\bdevice '([\w:]+)'/g, '--device $1'],
  [/^'cpu'$/, '--device cpu'],
  [/\bdataBackend:? '(\w+)'/g, '--data-backend $1'],
  [/\bcreateModel\(name, \{ device: '(\w+)' \}\)/g, '--device $1'],
  [/^device "/, '--device "'],
  [/^fp32, tf32, fp16-mixed or bf16-mixed$/, '--precision fp32, tf32, fp16-mixed or bf16-mixed'],
  [/^optimizer: '(\w+)'$/, '--optimizer $1'],
  [/^createModel\('([^']+)', \{ numClasses: (\d+) \}\)$/, '--model $1 and data of $2 classes; or another --out for a new run'],
  [/^createModel\(name, \{ precision: '([^']+)' \}\)$/, '--precision $1'],
  [/createModel\(name, \{ pretrained: file \}\)/g, 'effnet train --data DIR --model NAME --weights FILE'],
  [
    /createModel\(name, \{ numClasses: \d+ \}\) replaces the classifier/,
    'effnet train --data DIR --model NAME --weights FILE replaces the classifier',
  ],
  [/^loadModel\(folder\), or createModel\('[^']+', \{ compat: '([^']+)' \}\)$/, '--compat $1; or another --out for a new run'],
  [/^loadModel\(folder\)$/, 'leave --model out: it is that of the run; or give another --out for a new run'],
  [/ a smaller lossScale\.initial, or precision: '([\w-]+)'$/, ' or --precision $1'],
  [/\ba lower lr, longer warm-up\b/, 'a lower --lr, a longer --warmup-epochs'],
  [/\boptimizer\.lr\b/g, '--lr'],
  [/\boptimizer\.weightDecay\b/g, '--weight-decay'],
  [/\bschedule\.warmupEpochs\b/g, '--warmup-epochs'],
  [/\bschedule\.name\b/g, '--schedule'],
  [/\baugment\.scale\b/g, '--crop-scale'],
  [/(?<=[:,] )(seed|ema|precision)(?= was )/g, '--$1'],
  [/^raise maxPixels if the image is meant$/, 'make a smaller copy of the image'],
]

const names = Object.keys(FLAGS).join('|')
/** `clipNorm: 1`, `batchSize = 4`, `maxBad`: the name with what binds it to its value. */
const OPTION = new RegExp(`(?<![\\w./-])(${names})(?:\\s*[:=]\\s*(?=\\S)|(?![\\w/-]|\\.\\w))`, 'g')

export function userWords(text: string): string {
  let words = text
  for (const [pattern, replacement] of CALLS) words = words.replace(pattern, replacement)
  return words
    .replace(OPTION, (whole, name: string) => `${FLAGS[name]}${/[:=]/.test(whole) ? ' ' : ''}`)
    .replace(/ {2,}(?=--)/g, ' ')
}

const VERBS = 'train|eval|predict|models|bench|doctor|version'
const COMMAND = new RegExp(`(^|[\\s:(\`])effnet (?=(?:${VERBS})\\b)`, 'gm')

/** Commands in a text as this user has to type them: `npx effnet` where `effnet` alone is not found. */
export const asTyped = (text: string, program: string): string =>
  program === 'effnet' ? text : text.replace(COMMAND, `$1${program} `)
