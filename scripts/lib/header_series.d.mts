import type { headerLength, parseHeader } from '../../ts/weights/safetensors.js'

export interface HeaderReader {
  headerLength: typeof headerLength
  parseHeader: typeof parseHeader
}

export interface HeaderCounts {
  tried: number
  loaded: number
  refused: Record<string, number>
  slowestMs: number
}

export function headerSeries(
  count: number,
  seed: number,
  large: { text: string; dataBytes: number },
  reader: HeaderReader,
): HeaderCounts
