/** A sample of `npm run reliability -- --only headers`, and that the series sees a reader that is wrong. */
import { describe, expect, it } from 'vitest'
import { headerSeries } from '../../scripts/lib/header_series.mjs'
import { EffnetError } from '../../ts/errors.js'
import { headerLength, layoutSafetensors, parseHeader } from '../../ts/weights/safetensors.js'

const tensors = Array.from({ length: 300 }, (_, i) => ({ name: `blocks.${i}.weight`, dtype: 'F32', shape: [i, 3, 3] }) as const)
const { header, dataBytes } = layoutSafetensors(tensors, { format: 'pt' })
const large = { text: Buffer.from(header.subarray(8)).toString('utf8'), dataBytes }
const reader = { headerLength, parseHeader }

describe('mutated headers', () => {
  it('are loaded as JSON.parse reads them, or refused by a rule', () => {
    const { tried, loaded, refused } = headerSeries(20_000, 1, large, reader)
    expect(loaded + Object.values(refused).reduce((a, b) => a + b, 0)).toBe(tried)
    expect(loaded).toBeGreaterThan(1000)
    // Every rule comes up.
    const rules = [
      'HeaderTooSmall',
      'HeaderTooLarge',
      'InvalidHeaderLength',
      'InvalidHeader',
      'InvalidHeaderDeserialization',
      'InvalidOffset',
      'ValidationOverflow',
      'MisalignedSlice',
      'TensorInvalidInfo',
      'MetadataIncompleteBuffer',
    ]
    expect(Object.keys(refused).sort()).toEqual(rules.sort())
  })

  const wrong: [string, Partial<typeof reader>, RegExp][] = [
    [
      'throws what is no answer',
      {
        parseHeader: () => {
          throw new TypeError('undefined is not a function')
        },
      },
      /undefined is not a function/,
    ],
    ['loses a tensor', { parseHeader: (...a) => ({ ...parseHeader(...a), tensors: new Map() }) }, /tensors, JSON.parse sees/],
    [
      'does not look at the end of the file',
      {
        parseHeader: (bytes, fileBytes, file) => {
          try {
            return parseHeader(bytes, fileBytes, file)
          } catch (e) {
            const ends = /end at byte (\d+)/.exec((e as EffnetError).message)?.[1]
            if (ends === undefined) throw e
            return parseHeader(bytes, 8 + bytes.length + Number(ends), file)
          }
        },
      },
      /do not fill the data/,
    ],
    [
      'tells a whole header in its message',
      {
        parseHeader: (bytes) => {
          throw new EffnetError('EFF_WEIGHTS_CORRUPT', Buffer.from(bytes).toString().repeat(9), { details: { rule: 'x' } })
        },
      },
      /a message of \d+ characters/,
    ],
  ]
  it.each(wrong)('a reader that %s is caught', (_, part, message) => {
    expect(() => headerSeries(20_000, 1, large, { ...reader, ...part })).toThrow(message)
  })
})
