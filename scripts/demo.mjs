#!/usr/bin/env node
/**
 * `npm run demo`: sets up, fine-tunes EfficientNet-B0 on satellite photos from real pretrained weights, evaluates, predicts
 * held-out images, and checks the accuracy against the band of models/demo/expected.json. Options after `--` go to
 * `effnet train`; with others than --seed and --threads the band does not apply and is not checked.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { effnetOk } from './lib/effnet.mjs'
import { recordStage } from './lib/results.mjs'
import { fail, root, runThrough, SetupError, say } from './lib/run.mjs'

const DATA = 'models/demo'
const RECIPE = ['--image-size', '64', '--epochs', '4', '--batch-size', '32', '--lr', '1e-3']

const given = process.argv.slice(2).filter((a) => a !== '--check')
const check = process.argv.includes('--check')
const changesRecipe = given.some((a) => a.startsWith('--') && !/^--(seed|threads)(=|$)/.test(a))

function newRunFolder() {
  for (let n = 1; ; n++) {
    const folder = path.join('runs', n === 1 ? 'demo' : `demo-${n}`)
    if (!existsSync(path.join(root, folder))) return folder
  }
}

function pretrained() {
  const folder = path.join(root, 'models/pretrained')
  const file =
    existsSync(folder) && readdirSync(folder).find((f) => f.startsWith('tf_efficientnet_b0') && f.endsWith('.safetensors'))
  if (!file)
    throw new SetupError('models/pretrained holds no tf_efficientnet_b0*.safetensors', 'git checkout models/pretrained', 66)
  return path.join('models/pretrained', file)
}

/** The first validation image of every other class: images the training never saw. */
function heldOut() {
  const val = path.join(root, DATA, 'val')
  const classes = readdirSync(val).sort()
  return classes.filter((_, i) => i % 2 === 0).map((c) => path.join(DATA, 'val', c, readdirSync(path.join(val, c)).sort()[0]))
}

const percent = (x) => `${x.toFixed(2)} %`

async function demo() {
  const ready = await runThrough(process.execPath, [path.join(root, 'scripts/setup.mjs')])
  if (ready !== 0) throw new SetupError('the demo needs a finished setup', 'npm run setup', ready)
  const out = newRunFolder()
  const checkpoint = path.join(out, 'checkpoints/last')

  say('demo', `fine-tuning EfficientNet-B0 on ${DATA}; run folder ${out}`)
  const lines = await effnetOk([
    'train',
    '--data',
    DATA,
    '--model',
    'tf_efficientnet_b0',
    '--weights',
    pretrained(),
    ...RECIPE,
    '--out',
    out,
    ...given,
  ])
  const { result } = lines.at(-1)
  const trained = result.metrics['val/top1']
  say('demo', `trained: ${result.step} steps, ${result.images_per_s.toFixed(1)} images/s, validation top-1 ${percent(trained)}`)

  const size = given.includes('--image-size') ? [] : ['--image-size', '64']
  const evaluated = (await effnetOk(['eval', '--data', DATA, '--checkpoint', checkpoint, ...size])).at(-1).result.metrics[
    'val/top1'
  ]
  say('demo', `evaluated from the checkpoint: top-1 ${percent(evaluated)}`)
  if (Math.abs(evaluated - trained) > 1e-6) {
    throw new SetupError(
      `the checkpoint evaluates to ${percent(evaluated)}, the training said ${percent(trained)}`,
      undefined,
      70,
    )
  }

  say('demo', 'predicting held-out images (folder = truth)')
  for (const { path: file, topk, error } of await effnetOk([
    'predict',
    '--checkpoint',
    checkpoint,
    '--top-k',
    '2',
    ...heldOut(),
  ])) {
    const answer = error ? error.message : topk.map((t) => `${t.label} ${percent(t.score * 100)}`).join(', ')
    process.stdout.write(`  ${path.relative(DATA, file).padEnd(44)} ${answer}\n`)
  }
  say('demo', `report: ${path.join(out, 'report.html')}`)
  if (!existsSync(path.join(root, out, 'report.html'))) throw new SetupError('the run folder has no report.html', undefined, 70)
  checkBand(trained)
}

function checkBand(top1) {
  if (changesRecipe) {
    say('demo', 'other options than the demo recipe: the accuracy band is not checked')
    return
  }
  const { min, max } = JSON.parse(readFileSync(path.join(root, DATA, 'expected.json'), 'utf8'))['val/top1']
  const inside = top1 >= min && top1 <= max
  const text = `validation top-1 ${percent(top1)} is ${inside ? 'in' : 'OUTSIDE'} the expected band ${min} to ${max} %`
  if (!inside) throw new SetupError(text, 'npx effnet doctor; then report it with the run folder', 70)
  say('demo', text)
}

try {
  await demo()
  if (check) recordStage('demo', true)
} catch (e) {
  fail(e)
  if (check) recordStage('demo', false, e.message)
}
