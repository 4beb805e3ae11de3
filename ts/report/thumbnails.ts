/** Small pictures as data URIs, for pages that must open without anything beside them. */
import { readFile, stat } from 'node:fs/promises'
import { isJpeg } from '../data/decode.js'

const SIDE = 160
/** A JPEG up to this size goes in as it is. */
const AS_IS_BYTES = 16_384

/** In order; undefined where a file cannot be shown (unreadable, or sharp is not installed and the file is large). */
export async function thumbnails(files: readonly string[]): Promise<(string | undefined)[]> {
  const sharp = await import('sharp').then(
    (m) => m.default,
    () => undefined,
  )
  const pictures: (string | undefined)[] = []
  for (const file of files) {
    try {
      const { size } = await stat(file)
      if (size <= AS_IS_BYTES || sharp === undefined) {
        const bytes = size <= AS_IS_BYTES ? await readFile(file) : undefined
        if (bytes && isJpeg(bytes)) {
          pictures.push(`data:image/jpeg;base64,${bytes.toString('base64')}`)
          continue
        }
      }
      const small = await sharp?.(file).autoOrient().resize(SIDE, SIDE, { fit: 'cover' }).jpeg({ quality: 80 }).toBuffer()
      pictures.push(small && `data:image/jpeg;base64,${small.toString('base64')}`)
    } catch {
      pictures.push(undefined)
    }
  }
  return pictures
}
