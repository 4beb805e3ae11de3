/**
 * safetensors headers: `u64 N | N bytes of JSON | data`. The reader checks every rule of the format before anything is
 * allocated from it; tensor data never passes through JS (native/io reads and writes it).
 */
import { type FileHandle, open } from 'node:fs/promises'
import path from 'node:path'
import { EffnetError } from '../errors.js'
import { type Json, JsonError, parseJson } from './json.js'

/** Bits of an element. */
const DTYPE_BITS = {
  BOOL: 8,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  F64: 64,
  I64: 64,
  U64: 64,
  C64: 64,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
} as const
export type SafetensorsDtype = keyof typeof DTYPE_BITS

export interface TensorEntry {
  readonly name: string
  readonly dtype: SafetensorsDtype
  readonly shape: readonly number[]
  /** Bytes from the start of the data; `end` is exclusive. */
  readonly begin: number
  readonly end: number
}

export interface SafetensorsHeader {
  /** In the header's order. */
  readonly tensors: ReadonlyMap<string, TensorEntry>
  readonly metadata: ReadonlyMap<string, string>
  /** Position of the data in the file. */
  readonly dataStart: number
  readonly dataBytes: number
}

export interface SafetensorsFile extends SafetensorsHeader {
  readonly path: string
}

/** Names of the reference implementation's errors. */
export type SafetensorsRule =
  | 'HeaderTooSmall'
  | 'HeaderTooLarge'
  | 'InvalidHeaderLength'
  | 'InvalidHeader'
  | 'InvalidHeaderDeserialization'
  | 'InvalidOffset'
  | 'ValidationOverflow'
  | 'MisalignedSlice'
  | 'TensorInvalidInfo'
  | 'MetadataIncompleteBuffer'

/** Default limit of the header's size; a B0's is 33 KB. */
const MAX_HEADER_BYTES = 25_000_000

function corrupt(file: string, rule: SafetensorsRule, why: string, tensor?: string): EffnetError {
  const where = tensor === undefined ? '' : ` tensor "${tensor.slice(0, 200)}":`
  return new EffnetError('EFF_WEIGHTS_CORRUPT', `${file}:${where} ${why} (${rule})`, {
    hint: 'the file is incomplete or not safetensors; fetch or write it again and compare its sha256',
    details: { path: file, rule, ...(tensor === undefined ? {} : { tensor }) },
  })
}

/** Rule 1: the header's length, from the first 8 bytes (fewer when the file is shorter). */
export function headerLength(prefix: Uint8Array, fileBytes: number, file: string, limit = MAX_HEADER_BYTES): number {
  if (fileBytes < 8 || prefix.length < 8) throw corrupt(file, 'HeaderTooSmall', `${fileBytes} bytes; a header takes at least 8`)
  const n = new DataView(prefix.buffer, prefix.byteOffset, 8).getBigUint64(0, true)
  const other = foreignFormat(prefix)
  if (other && n > BigInt(fileBytes)) throw corrupt(file, 'InvalidHeaderLength', `this is ${other}, not safetensors`)
  if (n > BigInt(limit)) throw corrupt(file, 'HeaderTooLarge', `the header would take ${n} bytes; the limit is ${limit}`)
  if (8n + n > BigInt(fileBytes)) {
    throw corrupt(file, 'InvalidHeaderLength', `the header would take ${n} bytes, the file has ${fileBytes - 8} after its length`)
  }
  return Number(n)
}

/** Other files that people have at hand under this name. */
function foreignFormat(prefix: Uint8Array): string | undefined {
  const text = Buffer.from(prefix.buffer, prefix.byteOffset, 8).toString('latin1')
  if (text.startsWith('PK\x03\x04')) return 'a PyTorch .pth or NumPy .npz (zip) file'
  if (text.startsWith('\x80\x02')) return 'a pickled PyTorch file'
  if (text.startsWith('version ')) return 'a Git LFS pointer'
  if (text.startsWith('\x89HDF')) return 'an HDF5 file'
  return undefined
}

/** Rules 2 to 7 over the header's bytes. Throws EFF_WEIGHTS_CORRUPT naming the rule and the tensor. */
export function parseHeader(header: Uint8Array, fileBytes: number, file: string): SafetensorsHeader {
  const root = parseRoot(header, file)
  const metadata = new Map<string, string>()
  const tensors = new Map<string, TensorEntry>()
  for (const [name, value] of root) {
    if (name === '__metadata__') readMetadata(value, metadata, file)
    else tensors.set(name, readEntry(name, value, file))
  }
  const dataStart = 8 + header.length
  const dataBytes = fileBytes - dataStart
  checkLayout([...tensors.values()], dataBytes, file)
  return { tensors, metadata, dataStart, dataBytes }
}

function parseRoot(header: Uint8Array, file: string): ReadonlyMap<string, Json> {
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(header)
  } catch {
    throw corrupt(file, 'InvalidHeader', 'the header is not UTF-8')
  }
  try {
    const root = parseJson(text)
    if (root instanceof Map) return root
    throw corrupt(file, 'InvalidHeaderDeserialization', 'the header is not a JSON object')
  } catch (e) {
    if (!(e instanceof JsonError)) throw e
    const [tensor] = e.path
    throw corrupt(file, 'InvalidHeaderDeserialization', `${e.message} at character ${e.position} of the header`, tensor)
  }
}

function readMetadata(value: Json, into: Map<string, string>, file: string): void {
  const bad = (why: string): never => {
    throw corrupt(file, 'InvalidHeaderDeserialization', `__metadata__ ${why}`)
  }
  const entries = value instanceof Map ? value : bad('is not an object')
  for (const [key, text] of entries) into.set(key, typeof text === 'string' ? text : bad(`has a value that is no string: ${key}`))
}

function readEntry(name: string, value: Json, file: string): TensorEntry {
  const bad = (why: string): never => {
    throw corrupt(file, 'InvalidHeaderDeserialization', why, name)
  }
  if (!(value instanceof Map)) return bad('its entry is not an object')
  for (const key of value.keys()) if (!['dtype', 'shape', 'data_offsets'].includes(key)) bad(`unknown key ${key.slice(0, 40)}`)
  const integers = (key: string): number[] => {
    const list = value.get(key)
    if (!Array.isArray(list) || !list.every((v): v is number => typeof v === 'number'))
      return bad(`${key} is no list of integers`)
    return list
  }
  const dtype = value.get('dtype')
  if (typeof dtype !== 'string' || !Object.hasOwn(DTYPE_BITS, dtype))
    return bad(`unknown dtype ${JSON.stringify(dtype)?.slice(0, 40)}`)
  const shape = integers('shape')
  const [begin, end, ...more] = integers('data_offsets')
  if (begin === undefined || end === undefined || more.length) return bad('data_offsets are not two integers')
  return { name, dtype: dtype as SafetensorsDtype, shape, begin, end }
}

/** Rules 3 to 5: tensors lie end to end from 0 to the end of the file, each as long as its shape says. */
function checkLayout(tensors: TensorEntry[], dataBytes: number, file: string): void {
  tensors.sort((a, b) => a.begin - b.begin || a.end - b.end)
  let position = 0
  for (const t of tensors) {
    if (t.begin !== position || t.end < t.begin) {
      const why = `data_offsets [${t.begin}, ${t.end}] leave a hole, overlap or run backwards; expected a start of ${position}`
      throw corrupt(file, 'InvalidOffset', why, t.name)
    }
    const bits = checkedBits(t)
    if (bits === undefined) throw corrupt(file, 'ValidationOverflow', `shape [${t.shape.slice(0, 8)}] is too large`, t.name)
    if (bits % 8) throw corrupt(file, 'MisalignedSlice', `${bits} bits of ${t.dtype} are no whole number of bytes`, t.name)
    if (bits / 8 !== t.end - t.begin) {
      const why = `${t.dtype} [${t.shape.slice(0, 8)}] takes ${bits / 8} bytes, its data_offsets give ${t.end - t.begin}`
      throw corrupt(file, 'TensorInvalidInfo', why, t.name)
    }
    position = t.end
  }
  if (position !== dataBytes) {
    const why = `the tensors end at byte ${position} of the data, the file at ${dataBytes}`
    throw corrupt(file, 'MetadataIncompleteBuffer', why, position > dataBytes ? tensors.at(-1)?.name : undefined)
  }
}

/** Bits of a tensor; undefined where a product leaves the exact integers. */
function checkedBits(t: TensorEntry): number | undefined {
  let product = 1
  for (const factor of [...t.shape, DTYPE_BITS[t.dtype]]) {
    product *= factor
    if (product > Number.MAX_SAFE_INTEGER) return undefined
  }
  return product
}

/**
 * Reads and checks a file's header. Throws EFF_WEIGHTS_MISSING (no such file), EFF_WEIGHTS_CORRUPT, EFF_IO.
 * `maxHeaderBytes` bounds what is read into memory.
 */
export async function openSafetensors(file: string, options: { maxHeaderBytes?: number } = {}): Promise<SafetensorsFile> {
  let handle: FileHandle | undefined
  try {
    handle = await open(file, 'r')
    const stat = await handle.stat()
    if (!stat.isFile()) throw missing(file, 'is no file')
    const prefix = await readUpTo(handle, 8, 0)
    const n = headerLength(prefix, stat.size, file, options.maxHeaderBytes)
    const header = await readUpTo(handle, n, 8)
    if (header.length < n) throw corrupt(file, 'InvalidHeaderLength', 'the file was cut while it was read')
    return { path: path.resolve(file), ...parseHeader(header, stat.size, file) }
  } catch (cause) {
    if (cause instanceof EffnetError) throw cause
    const { code, message } = cause as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR') throw missing(file, 'does not exist')
    throw new EffnetError('EFF_IO', `${file}: ${message}`, { cause, details: { path: file } })
  } finally {
    await handle?.close()
  }
}

const missing = (file: string, why: string): EffnetError =>
  new EffnetError('EFF_WEIGHTS_MISSING', `weights file ${file} ${why}`, { hint: 'check the path', details: { path: file } })

async function readUpTo(handle: FileHandle, bytes: number, position: number): Promise<Uint8Array> {
  const buffer = new Uint8Array(bytes)
  let done = 0
  while (done < bytes) {
    const { bytesRead } = await handle.read(buffer, done, bytes - done, position + done)
    if (bytesRead === 0) break
    done += bytesRead
  }
  return buffer.subarray(0, done)
}

export interface NewTensor {
  readonly name: string
  readonly dtype: SafetensorsDtype
  readonly shape: readonly number[]
}

export interface HeaderToWrite {
  /** Length word and padded JSON: what precedes the data. A multiple of 8. */
  readonly header: Uint8Array
  readonly dataBytes: number
  /** In file order, with offsets. */
  readonly tensors: readonly TensorEntry[]
}

/**
 * Lays out a file: tensors by alignment descending, then by name, as the reference writer does; metadata by key. Equal
 * arguments give equal bytes.
 */
export function layoutSafetensors(tensors: readonly NewTensor[], metadata: Readonly<Record<string, string>> = {}): HeaderToWrite {
  const order = [...tensors].sort((a, b) => DTYPE_BITS[b.dtype] - DTYPE_BITS[a.dtype] || compare(a.name, b.name))
  const parts: string[] = []
  const entries: TensorEntry[] = []
  const seen = new Set<string>(['__metadata__'])
  const keys = Object.keys(metadata).sort(compare)
  if (keys.length) parts.push(`"__metadata__":{${keys.map((k) => `${JSON.stringify(k)}:${JSON.stringify(metadata[k])}`).join()}}`)
  let position = 0
  for (const { name, dtype, shape } of order) {
    if (seen.has(name)) throw new EffnetError('EFF_INTERNAL', `tensor name "${name}" cannot be written twice`)
    seen.add(name)
    const end = position + (shape.reduce((p, d) => p * d, 1) * DTYPE_BITS[dtype]) / 8
    parts.push(`${JSON.stringify(name)}:{"dtype":"${dtype}","shape":[${shape}],"data_offsets":[${position},${end}]}`)
    entries.push({ name, dtype, shape, begin: position, end })
    position = end
  }
  const json = Buffer.from(`{${parts.join()}}`, 'utf8')
  const padded = Math.ceil(json.length / 8) * 8
  const header = new Uint8Array(8 + padded).fill(0x20)
  new DataView(header.buffer).setBigUint64(0, BigInt(padded), true)
  header.set(json, 8)
  return { header, dataBytes: position, tensors: entries }
}

/** Byte order of UTF-8, which is that of code points; code units have it except around surrogates. */
function compare(a: string, b: string): number {
  if (a === b) return 0
  if (SURROGATE.test(a) || SURROGATE.test(b)) return Buffer.compare(Buffer.from(a), Buffer.from(b))
  return a < b ? -1 : 1
}
const SURROGATE = /[\ud800-\udfff]/
