/**
 * What people get wrong, as one table: read by the tests, which run it inside one process, and by `npm run reliability -- --only
 * mistakes`, which runs it through the installed command and measures. A row has the command line, the exit code, the error code,
 * and what message and mend must say.
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'

const TRAIN = ['--image-size', '32', '--epochs', '1', '--batch-size', '4']

/**
 * Makes the folder that the table speaks of. `photos` are JPEG files; `train` runs `effnet train` with the words it is given
 * (for a run, a checkpoint and a weights file that are real).
 */
export async function prepareMistakes(work, photos, train) {
  const at = (...names) => path.join(work, ...names)
  const classes = (dir, names, count) => {
    for (const [k, name] of names.entries()) {
      mkdirSync(at(dir, name), { recursive: true })
      for (let i = 0; i < count; i++) copyFileSync(photos[(k + i * names.length) % photos.length], at(dir, name, `${i}.jpg`))
    }
  }
  const split = (dir, names, val = names) => {
    classes(path.join(dir, 'train'), names, 4)
    classes(path.join(dir, 'val'), val, 2)
  }
  split('good', ['cat', 'dog'])
  split('other', ['cat', 'dog'], ['cat', 'fox'])
  split('three', ['ant', 'bee', 'cow'])
  split('foxes', ['cat', 'fox'])
  split('lonely', ['cat'])
  split('torn', ['cat', 'dog'])
  for (const name of ['cat/0.jpg', 'cat/1.jpg', 'dog/0.jpg']) writeFileSync(at('torn/train', name), 'no image')
  classes('broken', ['cat', 'dog'], 1)
  for (const name of ['cat/0.jpg', 'dog/0.jpg']) writeFileSync(at('broken', name), 'no image')
  classes('one', ['cat'], 1)
  classes('noval/train', ['cat', 'dog'], 2)
  mkdirSync(at('flat'))
  copyFileSync(photos[0], at('flat/photo.jpg'))
  mkdirSync(at('hollow/train/cat'), { recursive: true })
  mkdirSync(at('hollow/train/dog'), { recursive: true })
  mkdirSync(at('void'))
  writeFileSync(at('text.jpg'), 'Dear diary, this is not an image.\n')
  writeFileSync(at('old.bmp'), Buffer.from('BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0', 'latin1'))
  symlinkSync(at('nowhere.jpg'), at('dangling.jpg'))
  copyFileSync(photos[0], Buffer.concat([Buffer.from(`${work}/caf`), Buffer.from([0xe9]), Buffer.from('.jpg')]))

  await train([...data('good', at), '--model', 'efficientnet_b0', ...TRAIN, '--max-steps', '1', '--out', at('run')])
  const file = at('run/checkpoints/last/model.safetensors')
  const bytes = readFileSync(file)
  copyFileSync(file, at('b0.safetensors'))
  writeFileSync(at('short.safetensors'), bytes.subarray(0, 100_000))
  writeFileSync(at('empty.safetensors'), '')
  // A letter of the first tensor's dtype: the header is still JSON.
  const flipped = Buffer.from(bytes)
  flipped[flipped.indexOf('"dtype":"F32"') + 9] ^= 1
  writeFileSync(at('flipped.safetensors'), flipped)
  cpSync(at('run/checkpoints/last'), at('damaged'), { recursive: true })
  cpSync(at('run'), at('scrawled'), { recursive: true })
  writeFileSync(at('scrawled/config.yaml'), 'data: [photos\nmodel: }\n')
  const damaged = Buffer.from(bytes)
  damaged[damaged.length >> 1] ^= 1
  writeFileSync(at('damaged/model.safetensors'), damaged)
}

const data = (name, at) => ['--data', at(name)]

/** Rows; `at` gives paths below the folder that was prepared. `cwd`: where the command is typed, where that matters. */
export function mistakes(at) {
  const never = ['--out', at('never')]
  const train = (name, ...words) => ['train', ...data(name, at), '--model', 'efficientnet_b0', ...TRAIN, ...never, ...words]
  const predict = (...words) => ['predict', ...words]
  const weights = (file, ...words) => predict('--model', 'efficientnet_b0', '--weights', at(file), ...words, at('flat/photo.jpg'))
  const rows = [
    // The data
    ['a wrong folder', train('gone'), 66, 'EFF_DATA_MISSING', /gone/, /train\/ and val\//],
    ['a file in the place of the folder', train('text.jpg'), 66, 'EFF_DATA_MISSING', /text\.jpg/, /folder/],
    ['a folder without classes', train('flat'), 66, 'EFF_DATA_EMPTY', /flat: no class folders/, /folder named after the class/],
    ['classes without images', train('hollow'), 66, 'EFF_DATA_EMPTY', /cat, dog/, /images end in \.jpg/],
    ['one class', train('lonely'), 65, 'EFF_DATA_LABEL', /one class only \("cat", 4 images\)/, /two at least/],
    ['one image', train('one'), 65, 'EFF_DATA_LABEL', /1 image\)/, /two at least/],
    ['other classes in val/', train('other'), 65, 'EFF_DATA_LABEL', /dog.*fox/s, /same class folders/],
    ['files that are no images', train('torn', '--max-bad', '1'), 65, 'EFF_DATA_DECODE', /2 of 8 images/, /--max-bad/],
    [
      'no image that can be evaluated',
      ['eval', ...data('broken', at), '--checkpoint', at('run')],
      66,
      'EFF_DATA_EMPTY',
      /none of its 2 images/,
      /JPEG or PNG/,
    ],
    [
      'no image to measure the speed with',
      ['bench', '--mode', 'data', ...data('broken', at)],
      66,
      'EFF_DATA_EMPTY',
      /no complete batch of 2/,
      /--batch-size/,
    ],
    [
      'no val/ to evaluate',
      ['eval', ...data('noval', at), '--checkpoint', at('run')],
      66,
      'EFF_DATA_MISSING',
      /no val\//,
      /--val-split/,
    ],
    [
      'other classes than the checkpoint’s',
      ['eval', ...data('three', at), '--checkpoint', at('run')],
      65,
      'EFF_DATA_LABEL',
      /3 classes, the model has 2/,
      /checkpoint that was trained on these/,
    ],
    // Images
    ['an image that is not there', predict(at('gone.jpg')), 66, 'EFF_DATA_MISSING', /gone\.jpg/, /check the path/],
    ['neither file nor folder', predict(at('gone')), 66, 'EFF_DATA_MISSING', /gone/, /check the path/],
    ['a text as an image', predict(at('text.jpg')), 65, 'EFF_DATA_DECODE', /text\.jpg: not an image/, /JPEG/],
    ['a BMP', predict(at('old.bmp')), 65, 'EFF_DATA_DECODE', /BMP is not read/, /convert/],
    ['a link that leads nowhere', predict(at('dangling.jpg')), 66, 'EFF_DATA_MISSING', /dangling\.jpg/, /check the path/],
    ['a name that is not UTF-8', predict(at('caf*')), 66, 'EFF_DATA_MISSING', /not UTF-8: rename/, /check the path/],
    ['a glob that matches nothing', predict(at('*.gif')), 66, 'EFF_DATA_EMPTY', /\*\.gif/, /glob/],
    ['a glob that is none', predict(at('[z-a]*.jpg')), 64, 'EFF_CONFIG_VALUE', /\[z-a\]\*\.jpg/, /\[0-9\]/],
    ['a folder without images', predict(at('void')), 66, 'EFF_DATA_EMPTY', /void/, /image files/],
    // Words
    [
      'a typo in an option',
      train('good', '--bach-size', '8'),
      64,
      'EFF_CONFIG_KEY',
      /--bach-size is not an option/,
      /--batch-size N/,
    ],
    ['a typo in a verb', ['trian'], 64, 'EFF_CONFIG_KEY', /'trian'/, /effnet train/],
    [
      'a typo in a model’s name',
      ['bench', '--model', 'efficentnet_b3'],
      64,
      'EFF_MODEL_UNKNOWN',
      /efficentnet_b3/,
      /efficientnet_b3/,
    ],
    ['a typo in a choice', train('good', '--optimizer', 'admw'), 64, 'EFF_CONFIG_VALUE', /'admw'/, /--optimizer adamw/],
    ['a negative learning rate', train('good', '--lr=-0.1'), 64, 'EFF_CONFIG_VALUE', /--lr: '-0\.1'/, /above 0/],
    ['a learning rate that is no number', train('good', '--lr', 'NaN'), 64, 'EFF_CONFIG_VALUE', /--lr: 'NaN'/, /above 0/],
    ['a learning rate beyond fp32', train('good', '--lr', '1e300'), 64, 'EFF_CONFIG_VALUE', /--lr: '1e300'/, /at most 3e\+38/],
    ['zero epochs', train('good', '--epochs', '0'), 64, 'EFF_CONFIG_VALUE', /--epochs: '0'/, /at least 1/],
    ['half an image', train('good', '--batch-size', '1.5'), 64, 'EFF_CONFIG_VALUE', /--batch-size: '1\.5'/, /whole number/],
    ['a time that is none', train('good', '--max-time', 'soon'), 64, 'EFF_CONFIG_VALUE', /--max-time: "soon"/, /12h/],
    [
      'a time without a unit',
      train('good', '--max-time', '5'),
      64,
      'EFF_CONFIG_VALUE',
      /--max-time: "5"/,
      /^90s, 30m, 12h or DD:HH:MM:SS$/m,
    ],
    ['a value that is missing', ['train', '--data'], 64, 'EFF_CONFIG_VALUE', /--data needs a value/, /--data DIR/],
    [
      'a pattern that freezes nothing',
      train('good', '--freeze', 'head.*'),
      64,
      'EFF_CONFIG_VALUE',
      /--freeze head\.\*/,
      /backbone/,
    ],
    [
      'a pattern that freezes everything',
      train('good', '--freeze', '*'),
      64,
      'EFF_CONFIG_VALUE',
      /--freeze \*: every parameter is frozen: nothing is left to train/,
      /--freeze backbone/,
    ],
    [
      'more threads than there can be',
      ['predict', '--threads', '257', at('flat/photo.jpg')],
      64,
      'EFF_CONFIG_VALUE',
      /--threads: '257'/,
      /from 1 to 256/,
    ],
    [
      'a device that is not here',
      train('good', '--device', 'cuda:99'),
      69,
      'EFF_BACKEND_MISSING',
      /--device "cuda:99"/,
      /--device cpu/,
    ],
    [
      'images to be decoded by a GPU that is not there',
      train('good', '--data-backend', 'gpu'),
      64,
      'EFF_CONFIG_VALUE',
      /--data-backend gpu decodes images on the GPU of the model/,
      /--data-backend cpu, or --device cuda/,
    ],
    // Weights and checkpoints
    ['weights that are not there', weights('gone.safetensors'), 66, 'EFF_WEIGHTS_MISSING', /gone\.safetensors/, /path/],
    ['weights cut short', weights('short.safetensors'), 65, 'EFF_WEIGHTS_CORRUPT', /short\.safetensors/, /again/],
    ['an empty weights file', weights('empty.safetensors'), 65, 'EFF_WEIGHTS_CORRUPT', /empty\.safetensors/, /again/],
    ['weights with a flipped bit', weights('flipped.safetensors'), 65, 'EFF_WEIGHTS_CORRUPT', /flipped\.safetensors/, /again/],
    ['a text as weights', weights('text.jpg'), 65, 'EFF_WEIGHTS_CORRUPT', /text\.jpg/, /not safetensors/],
    [
      'two sources of weights to start from',
      train('good', '--pretrained', '--weights', at('b0.safetensors')),
      64,
      'EFF_CONFIG_VALUE',
      /--pretrained and --weights both/,
      /--pretrained alone/,
    ],
    [
      'weights that do not come with the package',
      train('good', '--pretrained', '--model', 'efficientnet_b1'),
      66,
      'EFF_WEIGHTS_MISSING',
      /no weights of efficientnet_b1/,
      /--weights FILE/,
    ],
    [
      'weights of another model',
      predict('--model', 'efficientnet_b2', '--weights', at('b0.safetensors'), at('flat/photo.jpg')),
      65,
      'EFF_WEIGHTS_SHAPE',
      /tensors do not fit efficientnet_b2/,
      /--model efficientnet_b0/,
    ],
    [
      'another class count',
      weights('b0.safetensors', '--num-classes', '7'),
      65,
      'EFF_WEIGHTS_SHAPE',
      /2 classes.* 7/,
      /leave --num-classes out/,
    ],
    [
      'a checkpoint with a flipped bit',
      predict('--checkpoint', at('damaged'), at('flat')),
      65,
      'EFF_CKPT_CORRUPT',
      /model\.safetensors/,
      /checkpoints\/best/,
    ],
    ['no checkpoint', predict('--checkpoint', at('void'), at('flat')), 66, 'EFF_CKPT_MISSING', /void/, /checkpoint folder/],
    [
      'weights as a checkpoint',
      predict('--checkpoint', at('b0.safetensors'), at('flat')),
      66,
      'EFF_CKPT_MISSING',
      /weights file/,
      /^--model NAME --weights/,
    ],
    // Runs
    ['a folder that holds a run', train('good', '--out', at('run')), 73, 'EFF_RUN_EXISTS', /run: there is a run/, /--resume/],
    ['a file in the place of the run', train('good', '--out', at('text.jpg')), 73, 'EFF_RUN_EXISTS', /text\.jpg/, /folder/],
    ['a run inside the data', train('good', '--out', at('good/run')), 64, 'EFF_CONFIG_VALUE', /lies in the data/, /--out /],
    [
      'a run inside the data without --out',
      ['train', '--data', '.', '--model', 'efficientnet_b0', ...TRAIN],
      64,
      'EFF_CONFIG_VALUE',
      /runs\/classify\/\S+ lies in the data/,
      /--out /,
      at('good'),
    ],
    ['the data as the run', train('good', '--out', at('good')), 64, 'EFF_CONFIG_VALUE', /is the data folder/, /--out .*runs/],
    [
      'a folder of classes as the run',
      train('good/train', '--val-split', '0.5', '--out', at('good/train')),
      64,
      'EFF_CONFIG_VALUE',
      /is the data folder/,
      /--out .*runs/,
    ],
    ['an output that cannot be made', train('good', '--out', '/proc/effnet'), 74, 'EFF_IO', /\/proc\/effnet/, /path/],
    ['a run to resume that is not there', train('good', '--resume', at('gone')), 66, 'EFF_CKPT_MISSING', /gone/, /--resume/],
    [
      'data in the place of the run',
      ['train', '--resume', at('good')],
      66,
      'EFF_CKPT_MISSING',
      /good: this is no run/,
      /runs\/first/,
    ],
    [
      'the checkpoints in the place of the run',
      ['train', '--resume', at('run/checkpoints')],
      66,
      'EFF_CKPT_MISSING',
      /checkpoints: this is no run/,
      /--resume \S+\/run$/m,
    ],
    [
      'a file of a checkpoint in the place of the run',
      ['train', '--resume', at('run/checkpoints/last/state.json')],
      66,
      'EFF_CKPT_MISSING',
      /state\.json: this is no run/,
      /--resume \S+\/run\/checkpoints\/last$/m,
    ],
    [
      'an empty path to resume',
      train('good', '--resume='),
      64,
      'EFF_CONFIG_VALUE',
      /--resume: the value is empty/,
      /--resume PATH/,
    ],
    [
      'a config.yaml that is no YAML',
      ['train', '--resume', at('scrawled')],
      65,
      'EFF_CKPT_CORRUPT',
      /scrawled\/config\.yaml: not YAML/,
      /rm \S+\/config\.yaml/,
    ],
    [
      'resuming with another model',
      ['train', '--resume', at('run'), '--model', 'efficientnet_b1'],
      65,
      'EFF_WEIGHTS_SHAPE',
      /efficientnet_b0/,
      /leave --model out/,
    ],
    [
      'resuming with another optimizer',
      ['train', '--resume', at('run'), '--optimizer', 'sgd', '--max-steps', '2'],
      64,
      'EFF_CONFIG_VALUE',
      /asks for sgd/,
      /^--optimizer rmsprop_tf/,
    ],
    [
      'resuming with other classes',
      ['train', '--resume', at('run'), ...data('foxes', at), '--max-steps', '2'],
      65,
      'EFF_DATA_LABEL',
      /other classes/,
      /the data the run began with/,
    ],
    // The machine
    [
      'a batch too large to train',
      train('good', '--model', 'efficientnet_b1', '--batch-size', '8', '--image-size', '4096'),
      71,
      'EFF_OOM',
      /needs [\d.]+ GiB.*[\d.]+ GiB are available/,
      /--batch-size \d|--image-size/,
    ],
    [
      'a batch too large to run',
      ['bench', '--batch-size', '65536', '--image-size', '4096', '--threads', '1'],
      71,
      'EFF_OOM',
      /needs [\d.]+ GiB/,
      /--batch-size \d/,
    ],
  ]
  return rows.map(([name, argv, exit, code, says, mend, cwd]) => ({ name, argv, exit, code, says, mend, cwd }))
}

/**
 * Mistakes that need a file system of their own, made by `tmpfs` (a function that mounts one of so many KiB and returns its path,
 * or undefined where this user may not).
 */
export function diskMistakes(at, tmpfs) {
  const train = (out) => ['train', ...data('good', at), '--model', 'efficientnet_b0', ...TRAIN, '--out', out]
  const small = tmpfs('small', 256, false)
  const fixed = tmpfs('fixed', 64, true)
  if (small === undefined || fixed === undefined) return []
  return [
    {
      name: 'no space',
      argv: train(path.join(small, 'run')),
      exit: 74,
      code: 'EFF_CKPT_NO_SPACE',
      says: /needs \d+\.\d MiB, \d+\.\d MiB are free/,
      mend: /^free some space and run it again, or write elsewhere: --out DIR$/m,
    },
    {
      name: 'a read-only output',
      argv: train(path.join(fixed, 'run')),
      exit: 73,
      code: 'EFF_IO',
      says: /read-only/,
      mend: /--out DIR/,
    },
  ]
}

/** Mistakes of permissions, which the superuser cannot make: they are to be run as somebody else. */
export function permissionMistakes(at) {
  copyFileSync(at('flat/photo.jpg'), at('secret.jpg'))
  chmodSync(at('secret.jpg'), 0)
  mkdirSync(at('locked'))
  chmodSync(at('locked'), 0o555)
  const train = ['train', ...data('good', at), '--model', 'efficientnet_b0', ...TRAIN, '--out', at('locked/run')]
  return [
    {
      name: 'a file that may not be read',
      argv: ['predict', at('secret.jpg')],
      exit: 77,
      code: 'EFF_IO',
      says: /secret/,
      mend: /access/,
    },
    { name: 'an output that may not be written', argv: train, exit: 77, code: 'EFF_IO', says: /locked/, mend: /access/ },
  ]
}

/** SHA-256 over names and contents of everything below `dir`, `skip` left out: what a mistake must not change. */
export function folderHash(dir, skip = []) {
  const hash = createHash('sha256')
  const visit = (folder, relative) => {
    for (const name of readdirSync(folder, { encoding: 'buffer' }).sort(Buffer.compare)) {
      const full = Buffer.concat([Buffer.from(folder), Buffer.from('/'), name])
      const shown = path.join(relative, name.toString('latin1'))
      if (skip.includes(shown)) continue
      const found = lstatSync(full)
      hash.update(`${shown} ${found.mode} ${found.isDirectory() ? '' : found.mtimeMs}\n`)
      if (found.isDirectory()) visit(full, shown)
      else hash.update(found.isSymbolicLink() ? readlinkSync(full) : readFileSync(full))
    }
  }
  if (existsSync(dir)) visit(dir, '')
  return hash.digest('hex')
}

/** Mounts small file systems below `work`; `release` unmounts them. */
export function mounts(work) {
  const made = []
  const tmpfs = (name, kib, readOnly) => {
    const dir = path.join(work, name)
    mkdirSync(dir, { recursive: true })
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${kib}k${readOnly ? ',ro' : ''}`, 'tmpfs', dir], { stdio: 'ignore' })
    } catch {
      return undefined
    }
    made.push(dir)
    return dir
  }
  const release = () => {
    for (const dir of made.splice(0)) execFileSync('umount', [dir])
  }
  return { tmpfs, release }
}

/** What a message on stderr lacks of what the row wants; undefined where it is as it should be. */
export function wrongWith(row, code, stderr) {
  const text = stderr.replace(/^\d+ of \d+ images could not be read\n/m, '')
  const codes = text.match(/^EFF_[A-Z_]+ {2}/gm) ?? []
  const mend = text.split('Mend: ')[1] ?? ''
  if (code !== row.exit) return `exit code ${code}, not ${row.exit}`
  if (codes.length !== 1) return `${codes.length} messages`
  if (codes[0].trim() !== row.code) return `${codes[0].trim()}, not ${row.code}`
  if (!row.says.test(text)) return `the message does not say ${row.says}`
  if (!row.mend.test(mend)) return `the mend does not say ${row.mend}`
  if (/^\s+at /m.test(text)) return 'a stack'
  const foreign = /\b(createModel|loadModel|batchSize|imageSize|maxBad|clipNorm|maxTime|numClasses|valSplit)\b/.exec(text)
  return foreign ? `a word of the library: ${foreign[0]}` : undefined
}
