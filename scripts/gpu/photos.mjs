/**
 * Photos whose logits by the CPU backend in FP32 are recorded when the archive is made, since the GPU's machine may have another CPU:
 *
 *   node scripts/gpu/photos.mjs FILE      writes them, and by how much each precision may be off
 *
 * `moves` is what the CPU's logits move, at most, when every weight is off by up to what that precision rounds.
 */
import { readdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { createModel } from '../../dist/index.js'
import { apart, move, ROUNDING } from './moves.mjs'

const MODEL = 'tf_efficientnet_b0'
const PHOTOS = 'models/demo/val'
const OF_A_KIND = 5
const SEEDS = [1, 2, 3]

/** Logits of each photo. `seed`: of weights that are off by up to `share`. */
export async function logitsOf(photos, { device, precision, share = 0, seed = 0 }) {
  const model = await createModel(MODEL, { pretrained: true, device, precision })
  if (share) move(model.session, share, seed)
  const found = await model.predict(photos, { topK: 5, logits: true })
  await model.close()
  return found
}

async function record(file) {
  const photos = readdirSync(PHOTOS)
    .sort()
    .flatMap((kind) =>
      readdirSync(path.join(PHOTOS, kind))
        .sort()
        .slice(0, OF_A_KIND)
        .map((name) => path.join(PHOTOS, kind, name)),
    )
  const cpu = { device: 'cpu', precision: 'fp32' }
  const found = await logitsOf(photos, cpu)
  const moves = {}
  for (const [precision, share] of Object.entries(ROUNDING)) {
    moves[precision] = 0
    for (const seed of SEEDS) {
      const moved = await logitsOf(photos, { ...cpu, share, seed })
      moves[precision] = Math.max(moves[precision], ...moved.map(({ logits }, i) => apart(logits, found[i].logits)))
    }
  }
  const recorded = found.map(({ logits, topk }, i) => ({
    photo: photos[i],
    top: topk.map(({ index }) => index),
    logits: Array.from(logits, (v) => Number(v.toPrecision(7))),
  }))
  writeFileSync(file, `${JSON.stringify({ moves, recorded })}\n`)
  process.stdout.write(`${recorded.length} photos; ${JSON.stringify(moves)}\n`)
}

if (process.argv[1] && path.resolve(process.argv[1]) === import.meta.filename) await record(process.argv[2])
