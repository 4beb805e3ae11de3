#!/usr/bin/env node
/**
 * Makes models/demo from a folder of classes with `train` and `val`: the same number of images of each class, unchanged bytes,
 * those whose names have the smallest SHA-256.
 *
 *     node scripts/make-demo-data.mjs DIR [TRAIN_PER_CLASS] [VAL_PER_CLASS]
 */
import { createHash } from 'node:crypto'
import { copyFileSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const [source, train = '60', val = '25'] = process.argv.slice(2)
if (!source) {
  console.error('usage: node scripts/make-demo-data.mjs DIR [TRAIN_PER_CLASS] [VAL_PER_CLASS]')
  process.exit(64)
}
const LIMIT = 3_000_000
const out = path.join(path.dirname(fileURLToPath(import.meta.url)), '../models/demo')
const hash = (name) => createHash('sha256').update(name).digest('hex')

let bytes = 0
const counts = []
for (const [split, perClass] of [
  ['train', Number(train)],
  ['val', Number(val)],
]) {
  rmSync(path.join(out, split), { recursive: true, force: true })
  for (const label of readdirSync(path.join(source, split)).sort()) {
    const from = path.join(source, split, label)
    const to = path.join(out, split, label)
    mkdirSync(to, { recursive: true })
    const names = readdirSync(from).sort((a, b) => (hash(a) < hash(b) ? -1 : 1))
    if (names.length < perClass) throw new Error(`${from} has ${names.length} images, not ${perClass}`)
    for (const name of names.slice(0, perClass)) {
      copyFileSync(path.join(from, name), path.join(to, name))
      bytes += statSync(path.join(to, name)).size
    }
    counts.push(`${split}/${label} ${perClass}`)
  }
}
console.log(`${counts.length / 2} classes, ${train} + ${val} images each, ${bytes} bytes`)
if (bytes > LIMIT) throw new Error(`${bytes} bytes are more than ${LIMIT}`)
