/**
 * Mutated JSON headers of safetensors files: `npm run reliability -- --only headers`, and a sample in
 * test/weights/header_fuzz.test.ts. Each is loaded or refused with EFF_WEIGHTS_CORRUPT and its rule. What is loaded is compared with
 * JSON.parse and exact integers; what takes long is tried again by
 * processor time, so that a busy machine does not fail it.
 */

/** Few headers here are longer than 100 KB, which takes some milliseconds; where the length word lies, up to 25 MB are decoded. */
const MOST_MS = 250
const LONGEST_MESSAGE = 1000

const BITS = { F64: 64, I64: 64, U64: 64, C64: 64, F32: 32, I32: 32, U32: 32, F16: 16, BF16: 16, I16: 16, U16: 16 }
const BYTES = ['BOOL', 'U8', 'I8', 'F8_E5M2', 'F8_E4M3', 'F8_E8M0', 'F8_E4M3FNUZ', 'F8_E5M2FNUZ']
const bitsOf = (dtype) => BITS[dtype] ?? (BYTES.includes(dtype) ? 8 : { F4: 4, F6_E2M3: 6, F6_E3M2: 6 }[dtype])

const NUMBERS = '0 1 2 3 8 -1 -0 00 01 1.0 1e0 1e5 1e400 0.5 255 65536 4294967296 9007199254740991 9007199254740992'.split(' ')
NUMBERS.push('9223372036854775808', '18446744073709551616', '9'.repeat(400), 'NaN', 'null', '"1"', '[1]', '{}', 'true')
const DTYPES = [...Object.keys(BITS), ...BYTES, 'F4', 'F6_E2M3', 'f32', '', 'F32\\u0000', 'constructor', '__proto__']
const NAMES = [
  'a',
  'b',
  '__metadata__',
  '__proto__',
  'constructor',
  '',
  'dtype',
  '\\u0061',
  '\\ud800',
  '\\ud83d\\ude00',
  'é',
  '𝒳',
]
const PIECES = [
  '{',
  '}',
  '[',
  ']',
  ',',
  ':',
  '"',
  '\\',
  ' ',
  '\t',
  '\u0000',
  '\ufeff',
  '\\u',
  '//',
  'null',
  'true',
  '-',
  'e',
  '.',
]

export function randomOf(seed) {
  let state = seed >>> 0
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 4294967296) * below)
  }
}

/** A sound header of a few tensors, and how many bytes of data it speaks of. */
function soundHeader(random) {
  const pick = (list) => list[random(list.length)]
  const entries = []
  let at = 0
  if (random(3) === 0) entries.push(`"__metadata__":{"format":"pt"${random(2) ? ',"x":"\\n"' : ''}}`)
  for (let i = 0; i < 1 + random(5); i++) {
    const dtype = pick(['F32', 'F16', 'BF16', 'I64', 'U8', 'F4'])
    const shape = Array.from({ length: random(4) }, () => (random(9) === 0 ? 0 : 2 * (1 + random(4))))
    const bits = shape.reduce((product, d) => product * d, 1) * bitsOf(dtype)
    if (bits % 8) continue
    entries.push(`"t${i}.weight":{"dtype":"${dtype}","shape":[${shape}],"data_offsets":[${at},${at + bits / 8}]}`)
    at += bits / 8
  }
  return { text: `{${entries.join()}}`, dataBytes: at }
}

/** One change of the text that knows what a header is made of. */
function change(text, random) {
  const pick = (list) => list[random(list.length)]
  const swap = (pattern, by) => {
    const found = [...text.matchAll(pattern)]
    if (found.length === 0) return text
    const { 0: word, index } = pick(found)
    return text.slice(0, index) + by(word) + text.slice(index + word.length)
  }
  const [from, to] = [random(text.length + 1), random(text.length + 1)].sort((a, b) => a - b)
  switch (random(15)) {
    case 0:
      return swap(/\d+/g, () => pick(NUMBERS))
    case 1:
      return swap(/\d+/g, (n) => String(Number(n) + random(9) - 4))
    case 2:
      return swap(/"[A-Z]+\d*[A-Z0-9_]*"/g, () => `"${pick(DTYPES)}"`)
    case 3:
      return swap(/"[^"]*":/g, () => `"${pick(NAMES)}":`)
    case 4:
      return swap(/"[^"]*":\{[^{}]*\}/g, (entry) => `${entry},${entry}`)
    case 5:
      return swap(/"[^"]*":\{[^{}]*\},?/g, () => '')
    case 6:
      return text.slice(0, from) + pick(PIECES) + text.slice(from)
    case 7:
      return text.slice(0, from) + text.slice(Math.min(to, from + 40))
    case 8:
      return text.slice(0, to) + text.slice(from, to)
    case 9:
      return text.slice(0, from)
    case 10:
      return (
        text.slice(0, from) +
        pick(['[', '{"a":', '[[1],', '"']).repeat(1 + random(random(40) === 0 ? 5000 : 30)) +
        text.slice(from)
      )
    case 11:
      return swap(/\[[^\]]*\]/g, () => `[${Array.from({ length: random(random(40) === 0 ? 5000 : 12) }, () => pick(NUMBERS))}]`)
    case 12:
      return swap(/"[^"]*"/g, () => `"${pick(NAMES).repeat(1 + random(random(40) === 0 ? 2000 : 20))}"`)
    case 13:
      return swap(/"shape":\[(?=\d)/g, (start) => `${start}${pick(['0', '1', '2', '4294967296', '9007199254740991'])},`)
    default:
      return text + pick([' ', '\n', '}', ',', '\u0000', text])
  }
}

/** Header bytes with their length word, and the size of the file they are said to be from. */
function mutated(random, large) {
  const sound = random(64) === 0 ? large : soundHeader(random)
  let { text } = sound
  for (let k = random(5); k > 0; k--) text = change(text, random)
  let json = Buffer.from(text, 'utf8')
  if (random(4) === 0) for (let k = 1 + random(3); k > 0 && json.length > 0; k--) json[random(json.length)] = random(256)
  if (random(16) === 0) json = json.subarray(0, random(json.length + 1))
  const prefix = Buffer.alloc(8)
  prefix.writeBigUInt64LE(BigInt(json.length))
  if (random(32) === 0) prefix[random(8)] ^= 1 + random(255)
  const dataBytes = random(16) === 0 ? random(2 ** 31) : sound.dataBytes
  return { prefix: random(64) === 0 ? prefix.subarray(0, random(8)) : prefix, json, fileBytes: 8 + json.length + dataBytes }
}

/** What a reader may make of a sound header, by other means: JSON.parse, BigInt. Undefined where it agrees. */
function disagreement({ tensors, metadata }, json, dataBytes) {
  const root = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(json))
  const names = Object.keys(root).filter((name) => name !== '__metadata__')
  if (names.length !== tensors.size) return `${tensors.size} tensors, JSON.parse sees ${names.length}`
  if (JSON.stringify(Object.entries(root.__metadata__ ?? {}).sort()) !== JSON.stringify([...metadata].sort()))
    return 'other metadata'
  const spans = []
  for (const name of names) {
    const { dtype, shape, data_offsets: offsets } = root[name]
    const read = tensors.get(name)
    const same = read && read.dtype === dtype && `${read.shape}` === `${shape}` && `${read.begin},${read.end}` === `${offsets}`
    if (!same) return `tensor ${name} was read otherwise`
    const bits = [...shape, bitsOf(dtype)].reduce((product, d) => product * BigInt(d), 1n)
    const [begin, end] = offsets.map(BigInt)
    if (bits !== 8n * (end - begin)) return `tensor ${name} is not as long as its shape`
    spans.push([begin, end])
  }
  spans.sort(([a, b], [c, d]) => Number(a - c) || Number(b - d))
  const reached = spans.reduce((at, [begin, end]) => (begin === at ? end : -1n), 0n)
  return reached === BigInt(dataBytes) ? undefined : 'the tensors do not fill the data'
}

function attempt({ prefix, json, fileBytes }, { headerLength, parseHeader }) {
  const length = headerLength(prefix, fileBytes, 'fuzz')
  if (8 + length > fileBytes) throw new Error(`a header of ${length} bytes was allowed in a file of ${fileBytes}`)
  // A length word that claims some of the data: zeros here.
  const bytes = length > json.length ? Buffer.concat([json], length) : json.subarray(0, length)
  return { header: parseHeader(bytes, fileBytes, 'fuzz'), bytes }
}

/** Time on the processor: a busy machine does not count. */
function cpuMs(work) {
  const before = process.cpuUsage()
  try {
    work()
  } catch {
    // Its answer is known.
  }
  const { user, system } = process.cpuUsage(before)
  return (user + system) / 1e3
}

/**
 * `count` headers by a seed, `large` among them. `reader` is the package's headerLength and parseHeader. Throws at the first that is
 * neither loaded nor refused as it should be, or is slow; returns how many were what and the slowest answer.
 */
export function headerSeries(count, seed, large, reader) {
  const random = randomOf(seed)
  const refused = {}
  let loaded = 0
  let slowest = 0
  for (let i = 0; i < count; i++) {
    const input = mutated(random, large)
    const where = `header ${i} of seed ${seed}`
    const answer = (() => {
      const begin = performance.now()
      try {
        return { result: attempt(input, reader), ms: performance.now() - begin }
      } catch (error) {
        return { error, ms: performance.now() - begin }
      }
    })()
    let { ms } = answer
    if (ms > MOST_MS) ms = Math.min(...[0, 1, 2].map(() => cpuMs(() => attempt(input, reader))))
    if (ms > MOST_MS) throw new Error(`${where}: ${ms.toFixed(0)} ms for ${input.json.length} bytes`)
    slowest = Math.max(slowest, ms)
    if (answer.error) {
      const { code, message, details } = answer.error
      if (code !== 'EFF_WEIGHTS_CORRUPT' || !details?.rule)
        throw new Error(`${where}: ${code} ${message}`, { cause: answer.error })
      if (message.length > LONGEST_MESSAGE) throw new Error(`${where}: a message of ${message.length} characters`)
      refused[details.rule] = (refused[details.rule] ?? 0) + 1
      continue
    }
    const { header, bytes } = answer.result
    const wrong = disagreement(header, bytes, input.fileBytes - 8 - bytes.length)
    if (wrong) throw new Error(`${where}: ${wrong}`)
    loaded++
  }
  return { tried: count, loaded, refused, slowestMs: Number(slowest.toFixed(1)) }
}
