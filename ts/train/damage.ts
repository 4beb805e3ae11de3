/** Which part of a damaged file changed: for the message, so that a person knows what is lost. */
import { createHash } from 'node:crypto'
import { open } from 'node:fs/promises'
import type { WrittenFile } from '../binding.js'
import { openSafetensors, type TensorEntry } from '../weights/safetensors.js'

/** Digits of each tensor's hash in `WrittenFile.tensors` (kTensorDigits in native/io/transfer.h). */
const DIGITS = 8
const NAMED = 3

/** "its contents", "its header", or the names of the tensors that differ. */
export async function changedPart(file: string, { tensors }: WrittenFile): Promise<string> {
  if (tensors === undefined) return 'its contents'
  try {
    const { dataStart, tensors: entries } = await openSafetensors(file)
    const order = [...entries.values()].sort((a, b) => a.begin - b.begin)
    const changed = await differing(file, dataStart, order, tensors)
    if (changed.length === 0) return 'its header'
    const more = changed.length > NAMED ? ` and ${changed.length - NAMED} more` : ''
    return `tensor${changed.length > 1 ? 's' : ''} ${changed.slice(0, NAMED).join(', ')}${more}`
  } catch {
    // A header that cannot be read names no tensors.
    return 'its header'
  }
}

async function differing(file: string, dataStart: number, order: readonly TensorEntry[], hashes: string): Promise<string[]> {
  const changed: string[] = []
  const handle = await open(file, 'r')
  try {
    for (const [i, { name, begin, end }] of order.entries()) {
      const bytes = new Uint8Array(end - begin)
      await handle.read(bytes, 0, bytes.length, dataStart + begin)
      const hash = createHash('sha256').update(bytes).digest('hex').slice(0, DIGITS)
      if (hash !== hashes.slice(i * DIGITS, (i + 1) * DIGITS)) changed.push(name)
    }
  } finally {
    await handle.close()
  }
  return changed
}
