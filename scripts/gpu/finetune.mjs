/**
 * A whole fine-tuning run on the GPU, the demo's recipe on models/demo in each 16-bit precision: its accuracy lies in the band
 * that models/demo/expected.json has from CPUs. Rehearsing, two steps on a photo of each class, small, and no band.
 */
import { spawnSync } from 'node:child_process'
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'

const rehearsing = process.env.EFFNET_REHEARSE === '1'
const { min, max } = JSON.parse(readFileSync('models/demo/expected.json', 'utf8'))['val/top1']
const weights = readdirSync('models/pretrained').find((f) => f.startsWith('tf_efficientnet_b0') && f.endsWith('.safetensors'))
const recipe = rehearsing
  ? ['--image-size', '32', '--max-steps', '2', '--batch-size', '2']
  : ['--image-size', '64', '--epochs', '4', '--batch-size', '32', '--lr', '1e-3']
/** A folder with the first photo of each class. */
function firstPhotos() {
  const into = mkdtempSync(path.join(os.tmpdir(), 'gpu-photos-'))
  for (const part of ['train', 'val']) {
    for (const kind of readdirSync(path.join('models/demo', part))) {
      const [photo] = readdirSync(path.join('models/demo', part, kind))
      cpSync(path.join('models/demo', part, kind, photo), path.join(into, part, kind, photo))
    }
  }
  return into
}
const data = rehearsing ? firstPhotos() : 'models/demo'
const summary = []
let failed = 0
for (const precision of ['bf16-mixed', 'fp16-mixed']) {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'gpu-finetune-'))
  const given = ['--data', data, '--model', 'tf_efficientnet_b0', '--weights', path.join('models/pretrained', weights)]
  const args = [
    'bin/effnet.mjs',
    'train',
    ...given,
    ...recipe,
    '--device',
    'cuda',
    '--precision',
    precision,
    '--out',
    path.join(folder, 'run'),
  ]
  const { status, stdout, stderr } = spawnSync(process.execPath, [...args, '--json'], { encoding: 'utf8' })
  process.stdout.write(stderr)
  const result = status === 0 ? JSON.parse(stdout.trimEnd().split('\n').at(-1)).result : undefined
  const top1 = result?.metrics['val/top1']
  const ok = result !== undefined && (rehearsing || (top1 >= min && top1 <= max))
  if (!ok) failed++
  const said = result
    ? `${result.step} steps, ${result.images_per_s.toFixed(0)}/s, top-1 ${top1?.toFixed(1) ?? '-'} %`
    : `exit code ${status}`
  summary.push(`${precision} ${said}${ok ? '' : ' FAILED'}`)
  rmSync(folder, { recursive: true, force: true })
}
if (rehearsing) rmSync(data, { recursive: true, force: true })
process.stdout.write(`${summary.join('; ')}${rehearsing ? '' : ` (band ${min} to ${max})`}\n`)
process.exitCode = failed === 0 ? 0 : 1
