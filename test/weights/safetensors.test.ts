import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { EffnetError } from '../../ts/errors.js'
import {
  headerLength,
  layoutSafetensors,
  openSafetensors,
  parseHeader,
  type SafetensorsHeader,
} from '../../ts/weights/safetensors.js'

const data = process.env['EFFNET_TEST_DATA']
const folder = mkdtempSync(path.join(tmpdir(), 'effnet-safetensors-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** A file of a header text, its data zeros. `claims` overrides the length word. */
function fileOf(header: string | Uint8Array, dataBytes: number, claims?: bigint): Uint8Array {
  const json = typeof header === 'string' ? Buffer.from(header) : header
  const bytes = new Uint8Array(8 + json.length + dataBytes)
  new DataView(bytes.buffer).setBigUint64(0, claims ?? BigInt(json.length), true)
  bytes.set(json, 8)
  return bytes
}

function parse(bytes: Uint8Array): SafetensorsHeader {
  const n = headerLength(bytes.subarray(0, 8), bytes.length, 'f')
  return parseHeader(bytes.subarray(8, 8 + n), bytes.length, 'f')
}

function refusal(bytes: Uint8Array): EffnetError {
  try {
    parse(bytes)
  } catch (e) {
    if (e instanceof EffnetError) return e
    throw e
  }
  throw new Error('was accepted')
}

const tensor = (name: string, shape: string, begin: number | string, end: number | string, dtype = 'F32'): string =>
  `"${name}":{"dtype":"${dtype}","shape":${shape},"data_offsets":[${begin},${end}]}`
const two = `{${tensor('a', '[2]', 0, 8)},${tensor('b', '[3]', 8, 20)}}`

describe('what is right is read', () => {
  test.each<[string, string, number, string[]]>([
    ['two tensors', two, 20, ['a', 'b']],
    ['padding at the end', `${two}     `, 20, ['a', 'b']],
    ['white space around', ` \t\r\n${two}\n`, 20, ['a', 'b']],
    ['no tensors', '{}', 0, []],
    ['metadata alone', '{"__metadata__":{"format":"pt"}}', 0, []],
    ['a scalar and an empty tensor', `{${tensor('s', '[]', 0, 4)},${tensor('e', '[0,7]', 4, 4)}}`, 4, ['s', 'e']],
    ['offsets in another order than names', `{${tensor('b', '[3]', 8, 20)},${tensor('a', '[2]', 0, 8)}}`, 20, ['b', 'a']],
    ['sub-byte elements', `{${tensor('q', '[3,2]', 0, 3, 'F4')}}`, 3, ['q']],
    ['escapes in names', '{"a\\u0062\\"\\\\":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1, ['ab"\\']],
    [
      'keys of objects that have a prototype',
      `{${tensor('__proto__', '[1]', 0, 4)},${tensor('constructor', '[1]', 4, 8)}}`,
      8,
      ['__proto__', 'constructor'],
    ],
  ])('%s', (_, header, bytes, names) => {
    expect([...parse(fileOf(header, bytes)).tensors.keys()]).toEqual(names)
  })

  test('all of an entry', () => {
    const file = parse(fileOf(`{"__metadata__":{"k":"v"},${tensor('a', '[2,3]', 0, 12, 'BF16')}}`, 12))
    expect(file.metadata).toEqual(new Map([['k', 'v']]))
    expect(file.tensors.get('a')).toEqual({ name: 'a', dtype: 'BF16', shape: [2, 3], begin: 0, end: 12 })
    expect([file.dataBytes, file.dataStart % 1]).toEqual([12, 0])
  })
})

describe('what is wrong is refused by its rule', () => {
  const big = '9007199254740993'
  test.each<[rule: string, why: string, file: Uint8Array, tensor?: string]>([
    ['HeaderTooSmall', 'no bytes', new Uint8Array(0)],
    ['HeaderTooSmall', 'seven bytes', new Uint8Array(7)],
    ['HeaderTooLarge', 'a length over the limit', fileOf('{}', 0, 25_000_001n)],
    ['HeaderTooLarge', 'a length that overflows an addition', fileOf('{}', 0, 2n ** 64n - 1n)],
    ['InvalidHeaderLength', 'a length beyond the file', fileOf('{}', 0, 3n)],
    ['InvalidHeader', 'no UTF-8', fileOf(Uint8Array.of(0x7b, 0xff, 0x7d), 0)],
    ['InvalidHeader', 'a cut UTF-8 sequence', fileOf(Uint8Array.of(0x7b, 0x22, 0xe2, 0x82), 0)],
    ['InvalidHeaderDeserialization', 'a byte order mark', fileOf(`\ufeff${two}`, 20)],
    ['InvalidHeaderDeserialization', 'an empty header', fileOf('', 0)],
    ['InvalidHeaderDeserialization', 'an array', fileOf('[]', 0)],
    ['InvalidHeaderDeserialization', 'cut JSON', fileOf(two.slice(0, -1), 20)],
    ['InvalidHeaderDeserialization', 'text after the object', fileOf(`${two}x`, 20)],
    ['InvalidHeaderDeserialization', 'a trailing comma', fileOf(`${two.slice(0, -1)},}`, 20)],
    ['InvalidHeaderDeserialization', 'zero bytes as padding', fileOf(`${two}\0`, 20)],
    [
      'InvalidHeaderDeserialization',
      'a name twice',
      fileOf(`{${tensor('a', '[2]', 0, 8)},${tensor('a', '[3]', 8, 20)}}`, 20),
      'a',
    ],
    [
      'InvalidHeaderDeserialization',
      'a name twice through an escape',
      fileOf(`{${tensor('a', '[2]', 0, 8)},${tensor('\\u0061', '[3]', 8, 20)}}`, 20),
      'a',
    ],
    ['InvalidHeaderDeserialization', 'metadata twice', fileOf('{"__metadata__":{},"__metadata__":{}}', 0)],
    ['InvalidHeaderDeserialization', 'metadata of numbers', fileOf('{"__metadata__":{"n":1}}', 0)],
    ['InvalidHeaderDeserialization', 'metadata that is a list', fileOf('{"__metadata__":[]}', 0)],
    ['InvalidHeaderDeserialization', 'an unknown dtype', fileOf(`{${tensor('a', '[2]', 0, 8, 'F33')}}`, 8), 'a'],
    ['InvalidHeaderDeserialization', 'a dtype of the prototype', fileOf(`{${tensor('a', '[2]', 0, 8, 'toString')}}`, 8), 'a'],
    ['InvalidHeaderDeserialization', 'no dtype', fileOf('{"a":{"shape":[2],"data_offsets":[0,8]}}', 8), 'a'],
    ['InvalidHeaderDeserialization', 'no shape', fileOf('{"a":{"dtype":"F32","data_offsets":[0,8]}}', 8), 'a'],
    ['InvalidHeaderDeserialization', 'no offsets', fileOf('{"a":{"dtype":"F32","shape":[2]}}', 8), 'a'],
    [
      'InvalidHeaderDeserialization',
      'a further key',
      fileOf('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"strides":[1]}}', 8),
      'a',
    ],
    ['InvalidHeaderDeserialization', 'an entry that is a number', fileOf('{"a":1}', 0), 'a'],
    ['InvalidHeaderDeserialization', 'three offsets', fileOf('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4,8]}}', 8), 'a'],
    ['InvalidHeaderDeserialization', 'a negative dimension', fileOf(`{${tensor('a', '[-2]', 0, 8)}}`, 8), 'a'],
    ['InvalidHeaderDeserialization', 'a fraction', fileOf(`{${tensor('a', '[2.0]', 0, 8)}}`, 8), 'a'],
    ['InvalidHeaderDeserialization', 'an exponent', fileOf(`{${tensor('a', '[2]', 0, '8e0')}}`, 8), 'a'],
    ['InvalidHeaderDeserialization', 'a leading zero', fileOf(`{${tensor('a', '[02]', 0, 8)}}`, 8), 'a'],
    ['InvalidHeaderDeserialization', 'an offset that numbers would round', fileOf(`{${tensor('a', '[2]', 0, big)}}`, 8), 'a'],
    ['InvalidHeaderDeserialization', 'a dimension that is a list', fileOf(`{${tensor('a', '[[2]]', 0, 8)}}`, 8), 'a'],
    ['InvalidHeaderDeserialization', 'nesting without end', fileOf(`{"a":${'['.repeat(100000)}`, 0), 'a'],
    [
      'InvalidHeaderDeserialization',
      'a lone surrogate',
      fileOf('{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', 0),
    ],
    ['InvalidOffset', 'a start after 0', fileOf(`{${tensor('a', '[2]', 4, 12)}}`, 12), 'a'],
    ['InvalidOffset', 'a hole', fileOf(`{${tensor('a', '[2]', 0, 8)},${tensor('b', '[3]', 12, 24)}}`, 24), 'b'],
    ['InvalidOffset', 'an overlap', fileOf(`{${tensor('a', '[2]', 0, 8)},${tensor('b', '[3]', 4, 16)}}`, 16), 'b'],
    ['InvalidOffset', 'the same bytes twice', fileOf(`{${tensor('a', '[2]', 0, 8)},${tensor('b', '[2]', 0, 8)}}`, 8), 'b'],
    ['InvalidOffset', 'an end before its start', fileOf(`{${tensor('a', '[2]', 0, 8)},${tensor('b', '[1]', 8, 4)}}`, 8), 'b'],
    ['ValidationOverflow', 'a product beyond 2^53', fileOf(`{${tensor('a', '[4294967296,4294967296]', 0, 8)}}`, 8), 'a'],
    [
      'ValidationOverflow',
      'a product that 64 bits would wrap to 0',
      fileOf(`{${tensor('a', '[9007199254740991,2048]', 0, 0)}}`, 0),
      'a',
    ],
    ['MisalignedSlice', 'half a byte', fileOf(`{${tensor('a', '[3]', 0, 2, 'F4')}}`, 2), 'a'],
    ['MisalignedSlice', 'six bits', fileOf(`{${tensor('a', '[1]', 0, 1, 'F6_E2M3')}}`, 1), 'a'],
    ['TensorInvalidInfo', 'more bytes than the shape', fileOf(`{${tensor('a', '[2]', 0, 12)}}`, 12), 'a'],
    ['TensorInvalidInfo', 'fewer bytes than the shape', fileOf(`{${tensor('a', '[2]', 0, 4)}}`, 4), 'a'],
    ['MetadataIncompleteBuffer', 'bytes after the last tensor', fileOf(two, 21)],
    ['MetadataIncompleteBuffer', 'bytes without a tensor', fileOf('{}', 1)],
    ['MetadataIncompleteBuffer', 'a cut file', fileOf(two, 19), 'b'],
  ])('%s: %s', (rule, _, file, name) => {
    const e = refusal(file)
    expect(e.code).toBe('EFF_WEIGHTS_CORRUPT')
    expect(e.details['rule']).toBe(rule)
    expect(e.message).toContain(rule)
    if (name) expect([e.details['tensor'], e.message.includes(`"${name}"`)]).toEqual([name, true])
  })

  test.each([
    ['PK\x03\x04\x00\x00\x08\x08rest', 'zip'],
    ['\x80\x02}q\x00(X\x01\x00', 'pickled'],
    ['version https://git-lfs.github.com/spec/v1\n', 'LFS'],
    ['\x89HDF\r\n\x1a\n1234', 'HDF5'],
  ])('other formats are named: %j', (text, name) => {
    expect(refusal(Buffer.from(text, 'latin1')).message).toContain(name)
  })
})

/** xorshift32: the same mutations in every run. */
function generator(seed: number): (below: number) => number {
  let x = seed | 1
  return (below) => {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    return (x >>> 0) % below
  }
}

describe('mutations', () => {
  const seeds = [
    fileOf(
      `{"__metadata__":{"format":"pt"},${tensor('a', '[2,1]', 0, 8)},${tensor('b', '[]', 8, 12)},${tensor('cé', '[0]', 12, 12)}}`,
      12,
    ),
    fileOf(two, 20),
  ]
  const alphabet = Buffer.from('{}[]":,0123456789-+.eE\\u tnrf\x00\xff')

  function mutate(file: Uint8Array, next: (below: number) => number): Uint8Array {
    let bytes = Buffer.from(file)
    for (let n = 1 + next(4); n > 0; n--) {
      const at = next(bytes.length)
      const kind = next(5)
      if (kind === 0) bytes[at] = next(256)
      else if (kind === 1) bytes[at] = alphabet[next(alphabet.length)]!
      else if (kind === 2) bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + next(8))])
      else if (kind === 3)
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(next(bytes.length), at + 8), bytes.subarray(at)])
      else if (bytes.length >= 8) bytes.writeBigUInt64LE(BigInt(next(bytes.length + 4)), 0)
      if (bytes.length === 0) return bytes
    }
    return bytes
  }

  test('of 20 000 files none throws anything but a refusal, and what is accepted keeps the rules', () => {
    const next = generator(20240607)
    const seen = new Set<unknown>()
    for (let i = 0; i < 20000; i++) {
      const bytes = mutate(seeds[i % seeds.length]!, next)
      try {
        const file = parse(bytes)
        let position = 0
        for (const t of [...file.tensors.values()].sort((a, b) => a.begin - b.begin || a.end - b.end)) {
          expect(t.begin).toBe(position)
          position = t.end
        }
        expect(file.dataStart + position).toBe(bytes.length)
      } catch (e) {
        if (!(e instanceof EffnetError) || e.code !== 'EFF_WEIGHTS_CORRUPT') throw e
        seen.add(e.details['rule'])
      }
    }
    expect(seen.size).toBeGreaterThan(6)
  })

  test('the parser agrees with JSON.parse on what it accepts', () => {
    const next = generator(7)
    for (let i = 0; i < 5000; i++) {
      const bytes = mutate(seeds[0]!, next)
      try {
        const file = parse(bytes)
        const n = Number(Buffer.from(bytes).readBigUInt64LE(0))
        const plain = JSON.parse(Buffer.from(bytes).toString('utf8', 8, 8 + n)) as Record<string, { shape: number[] }>
        for (const [name, t] of file.tensors) expect(t.shape).toEqual(plain[name]!.shape)
      } catch (e) {
        if (!(e instanceof EffnetError)) throw e
      }
    }
  })
})

describe('files', () => {
  const write = (name: string, bytes: Uint8Array): string => {
    const file = path.join(folder, name)
    writeFileSync(file, bytes)
    return file
  }

  test('a good one', async () => {
    const file = await openSafetensors(write('good.safetensors', fileOf(two, 20)))
    expect([file.tensors.size, file.dataBytes]).toEqual([2, 20])
    expect(path.isAbsolute(file.path)).toBe(true)
  })

  test('the limit of the header can be set', async () => {
    const file = write('limit.safetensors', fileOf(two, 20))
    await expect(openSafetensors(file, { maxHeaderBytes: 10 })).rejects.toMatchObject({ details: { rule: 'HeaderTooLarge' } })
  })

  test('missing ones and folders', async () => {
    for (const file of ['nowhere/x.safetensors', folder]) {
      await expect(openSafetensors(file)).rejects.toMatchObject({ code: 'EFF_WEIGHTS_MISSING', details: { path: file } })
    }
  })

  test('an empty one', async () => {
    await expect(openSafetensors(write('empty.safetensors', new Uint8Array(0)))).rejects.toMatchObject({
      code: 'EFF_WEIGHTS_CORRUPT',
      details: { rule: 'HeaderTooSmall' },
    })
  })

  test.skipIf(!data)('written by the reference implementation (EFFNET_TEST_DATA)', async () => {
    for (const [name, dtype] of [
      ['subset-f16', 'F16'],
      ['subset-bf16', 'BF16'],
    ] as const) {
      const file = await openSafetensors(path.join(data!, 'foreign-formats', `${name}.safetensors`))
      const expected = JSON.parse(readFileSync(path.join(data!, 'foreign-formats/expected.json'), 'utf8')) as {
        subset: Record<string, { shape: number[] }>
      }
      expect(new Set(file.tensors.keys())).toEqual(new Set(Object.keys(expected.subset)))
      for (const [tensorName, t] of file.tensors) {
        expect(t.shape).toEqual(expected.subset[tensorName]!.shape)
        expect(t.dtype).toBe(tensorName.endsWith('num_batches_tracked') ? 'I64' : dtype)
      }
    }
    const b0 = await openSafetensors(path.join(data!, 'weights/tf_efficientnet_b0.tfhub-v1.safetensors'))
    expect([b0.tensors.size, b0.metadata.get('architecture')]).toEqual([360, 'tf_efficientnet_b0'])
  })
})

describe('writing', () => {
  test('by alignment, then name; padded; readable', () => {
    const tensors = [
      { name: 'z', dtype: 'F32', shape: [2] },
      { name: 'h', dtype: 'F16', shape: [3] },
      { name: 'a', dtype: 'F32', shape: [] },
      { name: 'é', dtype: 'F32', shape: [1] },
      { name: 'n', dtype: 'I64', shape: [1, 0] },
    ] as const
    const layout = layoutSafetensors(tensors, { format: 'pt', architecture: 'x' })
    expect(layout.tensors.map((t) => [t.name, t.begin])).toEqual([
      ['n', 0],
      ['a', 0],
      ['z', 4],
      ['é', 12],
      ['h', 16],
    ])
    expect([layout.header.length % 8, layout.dataBytes]).toEqual([0, 22])
    const file = parse(Buffer.concat([layout.header, new Uint8Array(22)]))
    expect([...file.tensors.values()]).toEqual(layout.tensors)
    expect([...file.metadata]).toEqual([
      ['architecture', 'x'],
      ['format', 'pt'],
    ])
    expect(layoutSafetensors([...tensors].reverse(), { architecture: 'x', format: 'pt' }).header).toEqual(layout.header)
  })

  test('a name twice is a bug of the caller', () => {
    const t = { name: 'a', dtype: 'F32', shape: [1] } as const
    expect(() => layoutSafetensors([t, t])).toThrow(/twice/)
  })
})
