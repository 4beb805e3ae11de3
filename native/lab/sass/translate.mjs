/**
 * Each instruction of a kernel (read.mjs) as a JavaScript function over the lanes of a warp. What addresses and branches
 * follow from is computed exactly: integers, predicates, the conversions that divisions are made of. FP32 and FP64 are computed as
 * well, without regard to the last bit; FP16 and tensor cores are not: nothing of where a kernel goes depends on them.
 *
 * Generated code sees `s`, a warp (machine.mjs): R, F (registers as integers and floats, [register][lane]), U, V (uniform
 * ones), P, Q (predicates, a bit a lane; uniform ones), C, B (constants), `m` (lanes that execute).
 */

const FLOAT = new Float32Array(1)
const BITS = new Int32Array(FLOAT.buffer)
const floatBits = (x) => {
  FLOAT[0] = x
  return BITS[0]
}

/** The bits of an FP16 number. */
function halfBits(x) {
  if (x === 0) return Object.is(x, -0) ? 0x8000 : 0
  const sign = x < 0 ? 0x8000 : 0
  const size = Math.abs(x)
  const exponent = Math.floor(Math.log2(size))
  if (exponent < -14) return sign | Math.round(size * 2 ** 24)
  return sign | ((exponent + 15) << 10) | Math.round((size / 2 ** exponent - 1) * 1024)
}

export const helpers = {
  mulhiU: (a, b) => {
    const [al, ah, bl, bh] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16]
    const mid = ah * bl + ((al * bl) >>> 16)
    const cross = al * bh + (mid % 65536)
    return (ah * bh + Math.floor(mid / 65536) + Math.floor(cross / 65536)) | 0
  },
  mulhiS: (a, b) => (helpers.mulhiU(a, b) - (a < 0 ? b : 0) - (b < 0 ? a : 0)) | 0,
  prmt: (a, sel, b) => {
    let out = 0
    for (let i = 0; i < 4; i++) {
      const pick = (sel >>> (4 * i)) & 15
      const byte = ((pick & 4 ? b : a) >>> (8 * (pick & 3))) & 255
      out |= (pick & 8 ? (byte & 128 ? 255 : 0) : byte) << (8 * i)
    }
    return out
  },
  // Rounded up where that is asked for: reciprocals of divisors must not be too large.
  toFloat: (x, up) => {
    const near = Math.fround(x)
    return up && near < x ? helpers.next(near) : near
  },
  next: (x) => {
    FLOAT[0] = x
    BITS[0] += x >= 0 ? 1 : -1
    return FLOAT[0]
  },
  toUnsigned: (x) => (Number.isNaN(x) ? 0 : Math.min(Math.max(Math.trunc(x), 0), 0xffffffff) | 0),
  toSigned: (x) => (Number.isNaN(x) ? 0 : Math.min(Math.max(Math.trunc(x), -(2 ** 31)), 2 ** 31 - 1)),
}

/** An operand as an integer expression; negated for sums with a carry, ~x + 1, by `carried`. */
function integer(text) {
  const sign = text.match(/^[-~]/)?.[0] ?? ''
  const bare = text.slice(sign.length).replace(/^\|(.*)\|$/, '$1')
  const value = bareInteger(bare)
  const absolute = text.includes('|') ? `Math.abs(${value})` : value
  return sign === '-' ? `(-${absolute}|0)` : sign === '~' ? `(~${absolute})` : absolute
}
function bareInteger(text) {
  const [, uniform, number] = text.match(/^(U?)R(\d+)(?:\.\w+)*$/) ?? []
  if (number !== undefined) return uniform ? `U[${number}]` : `R[${Number(number) * 32}+l]`
  if (/^U?RZ(\.\w+)*$/.test(text) || text === 'SRZ') return '0'
  if (/^0x[0-9a-f]+$/.test(text)) return `(${Number(text) | 0})`
  if (/^\d+$/.test(text)) return `${Number(text) | 0}`
  const [, offset] = text.match(/^c\[0x0\]\[0x([0-9a-f]+)\]$/) ?? []
  if (offset !== undefined) return `C[${Number.parseInt(offset, 16) / 4}]`
  if (text === 'PR') return '0'
  if (/^[+-]?(\d*\.?\d+(e[+-]?\d+)?|INF|QNAN)$/.test(text)) return `${floatBits(number32(text))}`
  throw new Error(`operand ${text}`)
}
const number32 = (text) => (text.endsWith('INF') ? (text[0] === '-' ? -Infinity : Infinity) : Number(text))

/** An operand as a float expression. */
function float(text) {
  const [, minus, bar, bare] = text.match(/^(-?)(\|?)([^|]*)\|?$/)
  let value
  const [, uniform, number] = bare.match(/^(U?)R(\d+)(?:\.\w+)*$/) ?? []
  if (number !== undefined) value = uniform ? `V[${number}]` : `F[${Number(number) * 32}+l]`
  else if (/^U?RZ/.test(bare)) value = '0'
  else if (/^0x/.test(bare)) value = `s.asFloat(${Number(bare) | 0})`
  else if (bare.startsWith('c[')) value = `s.asFloat(${bareInteger(bare)})`
  else value = bare.endsWith('INF') ? 'Infinity' : bare.endsWith('QNAN') ? 'NaN' : `${Number(bare)}`
  if (bar) value = `Math.abs(${value})`
  return minus ? `(-${value})` : value
}

/** A pair of registers as an FP64 expression. */
function double(text) {
  const [, minus, bar, bare] = text.match(/^(-?)(\|?)([^|]*)\|?$/)
  let value
  const [, uniform, number] = bare.match(/^(U?)R(\d+)(?:\.\w+)*$/) ?? []
  if (number !== undefined) value = uniform ? `s.uniformDouble(U[${number}],U[${Number(number) + 1}])` : `s.double(${number},l)`
  else if (/^U?RZ/.test(bare)) value = '0'
  else if (bare.startsWith('c['))
    value = `s.uniformDouble(${bareInteger(bare)},${bareInteger(bare).replace(/\d+/, (n) => Number(n) + 1)})`
  else value = bare.endsWith('INF') ? 'Infinity' : `${Number(bare)}`
  if (bar) value = `Math.abs(${value})`
  return minus ? `(-${value})` : value
}
const writeDouble = (text, value) => (/^R\d+$/.test(text) ? `s.setDouble(${text.slice(1)},l,${value});` : '')

/** A predicate as 0 or 1. */
function bit(text) {
  const not = text.startsWith('!')
  const bare = text.slice(not ? 1 : 0)
  if (bare === 'PT' || bare === 'UPT') return not ? '0' : '1'
  const [, uniform, number] = bare.match(/^(U?)P(\d)$/)
  const value = uniform ? `Q[${number}]` : `(P[${number}]>>>l&1)`
  return not ? `(1-${value})` : value
}
const isPredicate = (text) => /^!?U?P(T|\d)$/.test(text)
const isTarget = (text) => /^U?P\d$/.test(text)

/** Statement that writes a register; 64-bit results go to the next one too. */
function write(text, value) {
  const [, uniform, number] = text.match(/^(U?)R(\d+)$/) ?? []
  if (number === undefined) return `${value};`
  return uniform ? `U[${number}]=${value};` : `R[${Number(number) * 32}+l]=${value};`
}
const writeFloat = (text, value) => {
  const [, uniform, number] = text.match(/^(U?)R(\d+)$/) ?? []
  if (number === undefined) return ''
  return uniform ? `V[${number}]=${value};` : `F[${Number(number) * 32}+l]=${value};`
}
export function next(text, by = 1) {
  const [, head, number, tail] = text.match(/^([-~]?U?R)(\d+)(.*)$/) ?? []
  return number === undefined ? text : `${head}${Number(number) + by}${tail}`
}

/** Collects predicates that an instruction sets, lane by lane. */
class Predicates {
  before = ''
  after = ''
  set(text, value) {
    if (!isTarget(text)) return ''
    const number = text.match(/\d/)[0]
    if (text.startsWith('U')) return `Q[${number}]=${value};`
    this.before += `let p${number}=0;`
    this.after += `P[${number}]=P[${number}]&~m|p${number}&m;`
    return `p${number}|=(${value})<<l;`
  }
}

const COMPARE = {
  GE: '>=',
  GT: '>',
  LT: '<',
  LE: '<=',
  EQ: '===',
  NE: '!==',
  GEU: '>=',
  GTU: '>',
  NEU: '!==',
  LTU: '<',
  LEU: '<=',
  EQU: '===',
}
const BOOL = { AND: '&', OR: '|', XOR: '^' }

function logic(a, b, c, table) {
  if (table === 0xc0) return `(${a}&${b})`
  if (table === 0xfc) return `(${a}|${b})`
  if (table === 0x3c) return `(${a}^${b})`
  if (table === 0x33) return `(~${b})`
  if (table === 0x0f) return `(~${a})`
  const terms = []
  for (let i = 0; i < 8; i++) {
    if (table & (1 << i)) terms.push(`${i & 4 ? '' : '~'}x&${i & 2 ? '' : '~'}y&${i & 1 ? '' : '~'}z`)
  }
  return `((x,y,z)=>${terms.length ? terms.join('|') : '0'})(${a},${b},${c})`
}

/** A term of a sum whose carry counts: 0 to 2^32. */
function summand(text) {
  if (text.startsWith('-')) return `(4294967296-(${integer(text.slice(1))}>>>0))`
  return `(${integer(text)}>>>0)`
}

/** What instructions that compute do, by name: statements for one lane. `o`: operands, `p`: predicates, `i`: the instruction. */
const COMPUTE = {
  MOV: (o) => write(o[0], integer(o[1])),
  IADD3: (o, p, i) => {
    const targets = []
    while (isPredicate(o[1])) targets.push(o.splice(1, 1)[0])
    const carries = i.mods.includes('X') ? o.slice(4).map(bit) : []
    if (targets.length === 0 && carries.length === 0) return write(o[0], `(${integer(o[1])}+${integer(o[2])}+${integer(o[3])}|0)`)
    // With a carry coming in, what is subtracted is complemented by the operand itself.
    const terms = o.slice(1, 4).map(summand)
    const sum = [...terms, ...carries].join('+')
    const sets = targets.map((t, n) => p.set(t, `(sum>=${n + 1}*4294967296?1:0)`)).join('')
    return `{const sum=${sum};${write(o[0], '(sum%4294967296|0)')}${sets}}`
  },
  VIADD: (o) => write(o[0], `(${integer(o[1])}+${integer(o[2])}|0)`),
  IABS: (o) => write(o[0], `(Math.abs(${integer(o[1])})|0)`),
  IMAD: (o, p, i) => {
    const carryOut = isPredicate(o[1]) ? o.splice(1, 1)[0] : 'PT'
    const signed = !i.mods.includes('U32')
    const [d, a, b, c] = o
    const high = signed ? 'mulhiS' : 'mulhiU'
    if (i.mods.includes('WIDE')) {
      const carry = i.mods.includes('X') ? bit(o[4]) : '0'
      const low = `(Math.imul(${integer(a)},${integer(b)})>>>0)+(${integer(c)}>>>0)+${carry}`
      const top = `(H.${high}(${integer(a)},${integer(b)})>>>0)+(${integer(next(c))}>>>0)+(low>=4294967296?1:0)`
      return `{const low=${low},top=${top};${write(d, '(low%4294967296|0)')}${write(next(d), '(top%4294967296|0)')}${p.set(carryOut, '(top>=4294967296?1:0)')}}`
    }
    if (i.mods.includes('HI')) {
      const low = `(Math.imul(${integer(a)},${integer(b)})>>>0)+(${integer(c)}>>>0)`
      const top = `(H.${high}(${integer(a)},${integer(b)})>>>0)+(${integer(next(c))}>>>0)+(${low}>=4294967296?1:0)`
      return `{const top=${top};${write(d, '(top%4294967296|0)')}${p.set(carryOut, '(top>=4294967296?1:0)')}}`
    }
    if (i.mods.includes('X')) return write(d, `(Math.imul(${integer(a)},${integer(b)})+${integer(c)}+${bit(o[4])}|0)`)
    if (isTarget(carryOut))
      return `{const sum=(Math.imul(${integer(a)},${integer(b)})>>>0)+${summand(c)};${write(d, '(sum%4294967296|0)')}${p.set(carryOut, '(sum>=4294967296?1:0)')}}`
    return write(d, `(Math.imul(${integer(a)},${integer(b)})+${integer(c)}|0)`)
  },
  LEA: (o, p, i) => {
    const carryOut = isPredicate(o[1]) ? o.splice(1, 1)[0] : 'PT'
    const carryIn = isPredicate(o.at(-1)) ? bit(o.pop()) : '0'
    const shift = Number(o.pop())
    const [d, a, b, c] = o
    let scaled = `(${integer(a)}<<${shift}>>>0)`
    if (i.mods.includes('HI')) {
      const top = i.mods.includes('SX32') ? `(${integer(a)}>>31)` : integer(c)
      scaled = shift === 0 ? `(${top}>>>0)` : `((${top}<<${shift}|${integer(a)}>>>${32 - shift})>>>0)`
    }
    return `{const sum=${scaled}+${summand(b)}+${carryIn};${write(d, '(sum%4294967296|0)')}${p.set(carryOut, '(sum>=4294967296?1:0)')}}`
  },
  LOP3: (o, p) => {
    const target = isPredicate(o[0]) ? o.shift() : 'PT'
    const value = logic(integer(o[1]), integer(o[2]), integer(o[3]), Number(o[4]))
    return `{const v=${value};${write(o[0], 'v')}${p.set(target, '(v!==0?1:0)')}}`
  },
  PLOP3: (o, p) => {
    const [d, e, a, b, c, table, other] = o
    const at = `(${bit(a)}<<2|${bit(b)}<<1|${bit(c)})`
    return `{const at=${at};${p.set(d, `${Number(table)}>>at&1`)}${p.set(e, `${Number(other)}>>at&1`)}}`
  },
  SHF: (o, _, i) => {
    const [d, low, by, high] = o
    const n = `(${integer(by)}&63)`
    const kind = i.mods.join('.')
    // Shifts by 32 and more leave nothing, or the sign.
    const right = (x, op) => `(${n}>31?${op === '>>' ? `${x}>>31` : '0'}:${x}${op}${n})`
    if (kind === 'L.U32') return write(d, `(${n}>31?0:${integer(low)}<<${n})`)
    if (kind === 'R.S32.HI') return write(d, right(integer(high), '>>'))
    if (kind === 'R.U32.HI') return write(d, right(integer(high), '>>>'))
    if (kind === 'L.U64.HI') return write(d, `s.shiftLeft(${integer(low)},${integer(high)},${n})`)
    if (kind === 'R.U64' || kind === 'R.S64') return write(d, `s.shiftRight(${integer(low)},${integer(high)},${n})`)
    throw new Error(`SHF.${kind}`)
  },
  ISETP: (o, p, i) => {
    const [compare, ...rest] = i.mods
    const unsigned = rest.includes('U32')
    const [a, b] = [o[2], o[3]].map((x) => (unsigned ? `(${integer(x)}>>>0)` : integer(x)))
    let value = `(${a}${COMPARE[compare]}${b}?1:0)`
    if (rest.includes('EX')) {
      const low = bit(o[5])
      if (compare === 'NE') value = `(${a}!==${b}?1:${low})`
      else if (compare === 'EQ') value = `(${a}===${b}?${low}:0)`
      else value = `(${a}===${b}?${low}:${a}${compare[0] === 'G' ? '>' : '<'}${b}?1:0)`
    }
    const join = BOOL[rest.find((mod) => mod in BOOL)]
    return `{const c=${value},q=${bit(o[4])};${p.set(o[0], `c${join}q`)}${p.set(o[1], `(1-c)${join}q`)}}`
  },
  SEL: (o) => write(o[0], `(${bit(o[3])}?${integer(o[1])}:${integer(o[2])})`),
  VIMNMX: (o, p, i) => {
    if (isPredicate(o[1])) o.splice(1, 2)
    const [a, b] = [o[1], o[2]].map((x) => (i.mods.includes('U32') ? `(${integer(x)}>>>0)` : integer(x)))
    const value = `(${bit(o[3])}?Math.min(${a},${b}):Math.max(${a},${b}))`
    return write(o[0], i.mods.includes('RELU') ? `Math.max(0,${value})` : `${value}|0`)
  },
  VIADDMNMX: (o) => {
    const sum = `(${integer(o[1])}+${integer(o[2])}|0)`
    return write(o[0], `(${bit(o[4])}?Math.min(${sum},${integer(o[3])}):Math.max(${sum},${integer(o[3])}))`)
  },
  PRMT: (o) => write(o[0], `H.prmt(${integer(o[1])},${integer(o[2])},${integer(o[3])})`),
  POPC: (o) => write(o[0], `s.count(${integer(o[1])})`),
  FLO: (o) => write(o[0], `(31-Math.clz32(${integer(o[1])}))`),
  I2F: (o, _, i) => {
    if (i.mods.includes('F64')) {
      const wide = i.mods.includes('S64') || i.mods.includes('U64')
      const whole = integer(o[1])
      return writeDouble(
        o[0],
        wide ? `(${whole}>>>0)+4294967296*${integer(next(o[1]))}` : i.mods.includes('U32') ? `(${whole}>>>0)` : whole,
      )
    }
    const type = i.mods[0]
    const x = integer(o[1])
    if (type === 'S64' || type === 'U64') return writeFloat(o[0], `Math.fround((${x}>>>0)+4294967296*${integer(next(o[1]))})`)
    const place = Number(o[1].match(/\.B(\d)/)?.[1] ?? 0)
    const value =
      type === 'U32' ? `(${x}>>>0)` : type === 'U16' ? `(${x}&65535)` : type === 'U8' ? `(${x}>>>${8 * place}&255)` : x
    return writeFloat(o[0], `H.toFloat(${value},${i.mods.includes('RP')})`)
  },
  I2FP: (o, _, i) => writeFloat(o[0], `Math.fround(${i.mods.includes('U32') ? `(${integer(o[1])}>>>0)` : integer(o[1])})`),
  F2I: (o, _, i) => {
    if (i.mods.includes('F64')) return ''
    if (i.mods.includes('U64'))
      return `{const x=${float(o[1])};${write(o[0], '(x%4294967296|0)')}${write(next(o[0]), '(x/4294967296|0)')}}`
    return write(o[0], `H.${i.mods.includes('U32') ? 'toUnsigned' : 'toSigned'}(${float(o[1])})`)
  },
  MUFU: (o, _, i) => {
    const x = float(o[1])
    const made = { RCP: `1/${x}`, EX2: `2**${x}`, TANH: `Math.tanh(${x})`, RSQ: `1/Math.sqrt(${x})` }[i.mods[0]]
    if (made) return writeFloat(o[0], made)
    // The high word of an FP64 result, of the high word of an operand.
    const high = (f) => write(o[0], `s.highWord(${f}(s.uniformDouble(0,${integer(o[1])})))`)
    return { RCP64H: high('1/'), RSQ64H: high('1/Math.sqrt') }[i.mods[0]]
  },
  FADD: (o) => writeFloat(o[0], `${float(o[1])}+${float(o[2])}`),
  FMUL: (o) => writeFloat(o[0], `${float(o[1])}*${float(o[2])}`),
  FFMA: (o) => writeFloat(o[0], `${float(o[1])}*${float(o[2])}+${float(o[3])}`),
  FSEL: (o) => writeFloat(o[0], `${bit(o[3])}?${float(o[1])}:${float(o[2])}`),
  FMNMX: (o) => writeFloat(o[0], `${bit(o[3])}?Math.min(${float(o[1])},${float(o[2])}):Math.max(${float(o[1])},${float(o[2])})`),
  FSETP: (o, p, i) => {
    const [a, b] = [float(o[2]), float(o[3])]
    const value = { NAN: `(${a}!==${a}||${b}!==${b}?1:0)`, NUM: `(${a}===${a}&&${b}===${b}?1:0)` }
    const c = value[i.mods[0]] ?? `(${a}${COMPARE[i.mods[0]]}${b}?1:0)`
    const join = BOOL[i.mods.find((mod) => mod in BOOL)]
    return `{const c=${c},q=${bit(o[4])};${p.set(o[0], `c${join}q`)}${p.set(o[1], `(1-c)${join}q`)}}`
  },
  FSET: (o, _, i) => writeFloat(o[0], `(${float(o[1])}${COMPARE[i.mods[1]]}${float(o[2])}?1:0)`),
  // Two numbers of 16 bits that make a constant; sums of FP16 are none of those that matter.
  HFMA2: (o) => {
    if (o[1] !== '-RZ' || o[2] !== 'RZ') return ''
    return write(o[0], `${(halfBits(Number(o[3])) << 16) | halfBits(Number(o[4]))}`)
  },
  HADD2: (o) => writeFloat(o[0], '1'),
  F2FP: (o) => write(o[0], '0x3f803f80'),
  F2F: (o, _, i) => {
    if (i.mods[0] === 'F64') return writeDouble(o[0], float(o[1]))
    return i.mods[0] === 'F32' ? writeFloat(o[0], double(o[1])) : write(o[0], '0x3f80')
  },
  FCHK: (o, p) => p.set(o[0], '0'),
  DSETP: (o, p, i) => {
    const [a, b] = [double(o[2]), double(o[3])]
    const value = { NAN: `(${a}!==${a}||${b}!==${b}?1:0)`, NUM: `(${a}===${a}&&${b}===${b}?1:0)` }
    const c = value[i.mods[0]] ?? `(${a}${COMPARE[i.mods[0]]}${b}?1:0)`
    const join = BOOL[i.mods.find((mod) => mod in BOOL)]
    return `{const c=${c},q=${bit(o[4])};${p.set(o[0], `c${join}q`)}${p.set(o[1], `(1-c)${join}q`)}}`
  },
  DADD: (o) => writeDouble(o[0], `${double(o[1])}+${double(o[2])}`),
  DMUL: (o) => writeDouble(o[0], `${double(o[1])}*${double(o[2])}`),
  DFMA: (o) => writeDouble(o[0], `${double(o[1])}*${double(o[2])}+${double(o[3])}`),
  HMMA: () => '',
  FRND: () => '',
  CS2R: (o, _, i) => write(o[0], '0') + (i.mods.includes('32') ? '' : write(next(o[0]), '0')),
  S2R: (o) => write(o[0], `s.special(${JSON.stringify(o[1])},l)`),
  P2R: (o) => write(o[0], `s.predicates(l)&${Number(o[3])}|${integer(o[2])}&~${Number(o[3])}`),
  LDC: (o, _, i) => {
    const [, register = 'RZ', offset = '0x0'] = o[1].match(/^c\[0x0\]\[(?:(U?R\w+)\+?)?(0x[0-9a-f]+)?\]$/) ?? []
    const at = `(${integer(register)}+${Number(offset)})`
    if (i.mods.includes('U8')) return write(o[0], `B[${at}]`)
    return write(o[0], `C[${at}>>2]`) + (i.mods.includes('64') ? write(next(o[0]), `C[(${at}>>2)+1]`) : '')
  },
}
COMPUTE.S2UR = COMPUTE.S2R
for (const base of ['MOV', 'IADD3', 'IMAD', 'LEA', 'LOP3', 'PLOP3', 'ISETP', 'SEL', 'PRMT', 'LDC'])
  COMPUTE[`U${base}`] = COMPUTE[base]
COMPUTE.USHF = COMPUTE.SHF

/** Instructions that see all lanes at once, or other lanes. */
const WHOLE = {
  R2UR: (o) => `{const l=s.first(m);U[${o[0].slice(2)}]=${integer(o[1])};}`,
  VOTEU: (o) => {
    const source = o.at(-1)
    const votes = source === 'PT' ? 'm' : `(P[${source.slice(1)}]&m)`
    if (isTarget(o[0])) return `Q[${o[0].slice(2)}]=${votes}!==0?1:0;`
    return `U[${o[0].slice(2)}]=${votes};`
  },
  SHFL: (o, i) => {
    const [, d, a, b] = o
    const from = i.mods[0] === 'BFLY' ? `l^${integer(b)}` : integer(b)
    return `{const old=s.copy(${a.slice(1)});for(let l=0;l<32;l++)if(m>>>l&1)${write(d, `old[(${from})&31]`)}}`
  },
}

/** [R4.64+UR6+0x10] as an expression of a lane. */
function address(text) {
  const terms = text
    .replace(/^desc\[\w+\]/, '')
    .replace(/^\[|\]$/g, '')
    .split(/\+(?!$)/)
  return terms
    .map((term) => {
      if (/\.64$/.test(term)) {
        const low = term.replace('.64', '')
        return `((${integer(low)}>>>0)+4294967296*(${integer(next(low))}>>>0))`
      }
      return /^-?0x/.test(term) ? `${Number(term.replace('-', '')) * (term[0] === '-' ? -1 : 1)}` : integer(term)
    })
    .join('+')
}

const bytesOf = (mods) =>
  mods.includes('128')
    ? 16
    : mods.includes('64')
      ? 8
      : mods.includes('U16') || mods.includes('S16')
        ? 2
        : mods.includes('U8') || mods.includes('S8')
          ? 1
          : 4

/** Loads and stores: they tell the machine which addresses the lanes have. */
function memory(i) {
  const o = i.operands
  const bytes = bytesOf(i.mods)
  const words = Math.ceil(bytes / 4)
  const addresses = (text) => `for(let l=0;l<32;l++)A[l]=m>>>l&1?${address(text)}:0;`
  const loaded = (d, value) => {
    let text = ''
    for (let w = 0; w < words; w++) text += write(next(d, w), value(w))
    return `for(let l=0;l<32;l++)if(m>>>l&1){${text}}`
  }
  switch (i.base) {
    case 'LDG':
    case 'LD':
      return `${addresses(o[1])}s.global(A,m,${bytes},false);${loaded(o[0], (w) => `s.load(A[l]+${4 * w},${bytes})`)}`
    case 'STG':
      return `${addresses(o[0])}s.global(A,m,${bytes},true);`
    case 'ATOMG':
      return `${addresses(o[2])}s.global(A,m,${bytes},true);for(let l=0;l<32;l++)if(m>>>l&1){${write(o[1], '0')}}`
    case 'LDGSTS': {
      const reads = o[2] ? (isPredicate(o[2]) ? `(${guardMask(o[2])}&m)` : 'm') : 'm'
      return `${addresses(o[0])}s.shared(A,m,${bytes});${addresses(o[1])}s.global(A,${reads},${bytes},false);`
    }
    case 'LDS':
      return `${addresses(o[1])}s.shared(A,m,${bytes});${loaded(o[0], (w) => (bytes < 4 ? '0x3f80' : `s.read32(A[l]+${4 * w})`))}`
    case 'STS': {
      let text = ''
      for (let w = 0; w < words; w++) text += `s.write(A[l]+${4 * w},${integer(next(o[1], w))});`
      return `${addresses(o[0])}s.shared(A,m,${bytes});${bytes < 4 ? '' : `for(let l=0;l<32;l++)if(m>>>l&1){${text}}`}`
    }
    case 'LDSM':
      return `${addresses(o[1])}s.shared(A,m,16);`
    default:
      throw new Error(i.name)
  }
}
const MEMORY = new Set(['LDG', 'LD', 'STG', 'ATOMG', 'LDGSTS', 'LDS', 'STS', 'LDSM'])
const NOTHING = new Set(['NOP', 'BAR', 'DEPBAR', 'LDGDEPBAR', 'MEMBAR', 'ERRBAR', 'CGAERRBAR', 'CCTL', 'YIELD', 'ENDCOLLECTIVE'])
/** What decides where a warp goes on (machine.mjs). */
const CONTROL = new Set(['BRA', 'BSSY', 'BSYNC', 'BREAK', 'CALL', 'RET', 'EXIT', 'WARPSYNC'])

function guardMask(text) {
  if (!text) return '-1'
  const not = text.startsWith('!')
  const bare = text.slice(not ? 1 : 0)
  if (bare === 'PT' || bare === 'UPT') return not ? '0' : '-1'
  const [, uniform, number] = bare.match(/^(U?)P(\d)$/)
  const value = uniform ? `-Q[${number}]` : `P[${number}]`
  return not ? `~${value}` : value
}

const PARAMETERS = ['s', 'H', 'R', 'F', 'U', 'V', 'P', 'Q', 'C', 'B', 'A', 'm']
function compiled(body) {
  return new Function(...PARAMETERS, body)
}

function statements(i) {
  const o = [...i.operands]
  if (NOTHING.has(i.base)) return ''
  if (MEMORY.has(i.base)) return memory(i)
  if (WHOLE[i.base]) return WHOLE[i.base](o, i)
  const of = COMPUTE[i.base]
  if (!of) throw new Error(`no meaning is known of ${i.name}`)
  const predicates = new Predicates()
  const body = of(o, predicates, i)
  const uniform = /^U|^S2UR/.test(i.base) || /^UR|^UP/.test(i.operands[0])
  if (uniform) return `const l=0;${body}`
  return `${predicates.before}if(m===-1)for(let l=0;l<32;l++){${body}}else for(let l=0;l<32;l++)if(m>>>l&1){${body}}${predicates.after}`
}

const cache = new Map()
function functionOf(i) {
  const key = `${i.name} ${i.operands.join(', ')}`
  if (!cache.has(key)) {
    try {
      cache.set(key, compiled(statements(i)))
    } catch (error) {
      throw new Error(`${key}: ${error.message}`)
    }
  }
  return cache.get(key)
}
const guards = new Map()
function guardOf(text) {
  if (!text) return null
  if (!guards.has(text)) guards.set(text, new Function('P', 'Q', `return ${guardMask(text)}`))
  return guards.get(text)
}

/** A kernel's code to be run: `control` of an instruction that branches, else `run`. */
export function translate(code) {
  const index = new Map(code.map((i, at) => [i.at, at]))
  const to = (text) => index.get(Number(text))
  return code.map((i) => {
    const made = { ...i, guard: guardOf(i.guard) }
    if (!CONTROL.has(i.base)) return { ...made, run: functionOf(i) }
    if (i.base === 'RET') return { ...made, control: 'RET', register: Number(i.operands[0].slice(1)), index }
    const predicates = i.operands.filter(isPredicate).map(guardOf)
    const barrier = Number(i.operands.find((x) => /^B\d+$/.test(x))?.slice(1) ?? -1)
    const target = i.operands.find((x) => /^0x/.test(x))
    const kind = i.base === 'BRA' && /DIV|CONV/.test(i.name) ? i.mods[0] : i.base
    return { ...made, control: kind, predicates, barrier, target: target === undefined ? -1 : to(target) }
  })
}
