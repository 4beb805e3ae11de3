/** Tables of test/fixtures/io, written by scripts/fixtures/io_images.py with Pillow. */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export const IO_FIXTURES = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../../fixtures/io')

/** Real images; undefined without EFFNET_TEST_DATA. */
export const TEST_DATA = process.env['EFFNET_TEST_DATA']

export const fixture = (name: string): Buffer => readFileSync(path.join(IO_FIXTURES, name))

export const table = (file: string): string[][] =>
  readFileSync(file, 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => line.split('\t'))

export const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

export const mean = (bytes: Uint8Array): number => bytes.reduce((sum, v) => sum + v, 0) / bytes.length
