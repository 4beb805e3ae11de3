/**
 * Runs blocks of a kernel from its machine code, one warp after another, and counts what they issue and which memory
 * they ask for. Loads give 1.0 whatever lies there, so that only what follows from a launch's arguments decides where
 * a warp goes: of kernels that read where to go from memory nothing is learnt.
 */
import { helpers, translate } from './translate.mjs'

const FILL = 0x3f803f80
const PARAMETERS_AT = 0x210
/** Where arguments are to loads that do not know that they read one, and where kernels find that address. */
const WINDOW = 2 ** 40
const WINDOW_AT = 0x198
const MOST_ISSUED = 2 ** 22

/**
 * What a warp instruction costs a multiprocessor of compute capability 9.0, in cycles of each of its units: results a
 * clock of the CUDA programming guide's table. All are issued by four schedulers, one a cycle each.
 */
const FP32 = new Set(['FADD', 'FMUL', 'FFMA', 'HFMA2', 'HADD2'])
const XU = new Set(['MUFU', 'I2F', 'F2I', 'F2F', 'POPC', 'FLO', 'FRND'])
const FP64 = new Set(['DADD', 'DMUL', 'DFMA', 'DSETP'])
const MEMORY = new Set(['LDG', 'LD', 'STG', 'ATOMG', 'LDGSTS', 'LDS', 'STS', 'LDSM', 'SHFL'])
const ALU = new Set(
  'MOV IADD3 VIADD IABS LEA LOP3 PLOP3 SHF ISETP SEL VIMNMX VIADDMNMX PRMT I2FP FSEL FMNMX FSETP FSET F2FP FCHK P2R CS2R'.split(
    ' ',
  ),
)
function unitOf({ base }) {
  if (FP32.has(base)) return 'fp32'
  if (base === 'IMAD') return 'imad'
  if (ALU.has(base)) return 'alu'
  if (XU.has(base)) return 'xu'
  if (FP64.has(base)) return 'fp64'
  if (base === 'HMMA') return 'tensor'
  if (MEMORY.has(base)) return 'memory'
  return 'other'
}
const UNITS = ['fp32', 'imad', 'alu', 'xu', 'fp64', 'tensor', 'memory', 'other']

/** What blocks of a launch have done, added up. */
export class Counts {
  issued = 0
  units = Object.fromEntries(UNITS.map((unit) => [unit, 0]))
  /** Cycles of shared memory, and of the L1 for what goes to memory. */
  shared = 0
  global = 0

  add(other, times) {
    this.issued += other.issued * times
    for (const unit of UNITS) this.units[unit] += other.units[unit] * times
    this.shared += other.shared * times
    this.global += other.global * times
  }
}

/** What cannot be known: where a kernel goes is told by what it reads. */
export class Elsewhere extends Error {}

/** Of an access: banks' words, and sectors. */
const BANKS = new Uint8Array(32)
const BANK_WORDS = new Int32Array(32 * 32)
const SECTORS = new Float64Array(64)
const DOUBLE = new Float64Array(1)
const PAIR = new Int32Array(DOUBLE.buffer)

/** Sectors of 32 bytes of one operand that a block has touched: bits by pages of 1024. */
class Touched {
  pages = new Map()
  count = 0
  first = Infinity
  last = 0

  add(sector) {
    const number = Math.floor(sector / 1024)
    const at = sector - number * 1024
    if (number !== this.number) {
      if (!this.pages.has(number)) this.pages.set(number, new Int32Array(32))
      this.number = number
      this.page = this.pages.get(number)
    }
    const bit = 1 << (at & 31)
    if (this.page[at >> 5] & bit) return
    this.page[at >> 5] |= bit
    this.count++
    if (sector < this.first) this.first = sector
    if (sector > this.last) this.last = sector
  }
}

class Lanes {
  R = new Int32Array(257 * 32)
  F = new Float32Array(this.R.buffer)
  U = new Int32Array(64)
  V = new Float32Array(this.U.buffer)
  P = new Int32Array(8)
  Q = new Int32Array(8)
  A = new Float64Array(32)
}

export class Machine {
  #kernels
  #translated = new Map()

  constructor(kernels) {
    this.#kernels = kernels
  }

  #code(name) {
    if (!this.#translated.has(name)) {
      const code = this.#kernels.get(name)
      if (!code) throw new Error(`there is no kernel ${name}`)
      this.#translated.set(name, translate(code))
    }
    return this.#translated.get(name)
  }

  /** Runs some blocks of a launch and says what all of them do. */
  launch({ kernel, grid, threads, args }) {
    const code = this.#code(kernel)
    const count = grid[0] * grid[1] * grid[2]
    const sample = [...new Set([0, Math.floor(count / 3), Math.floor((2 * count) / 3), count - 1])]
    const constants = constantsOf(grid, threads, args)
    const pointers = pointersIn(args)
    const total = new Counts()
    const operands = { read: new Map(), written: new Map() }
    const ends = sample.filter((at) => at === 0 || at === count - 1).length
    const inner = sample.length - ends
    for (const at of sample) {
      const place = [at % grid[0], Math.floor(at / grid[0]) % grid[1], Math.floor(at / (grid[0] * grid[1]))]
      const block = new Block(code, constants, threads, place, pointers)
      block.run()
      const times = at === 0 || at === count - 1 || inner === 0 ? 1 : (count - ends) / inner
      total.add(block.counts, times)
      for (const way of ['read', 'written']) {
        for (const [operand, touched] of block[way]) {
          const of = operands[way].get(operand) ?? { bytes: 0, first: Infinity, last: 0 }
          operands[way].set(operand, of)
          of.bytes += touched.count * 32 * times
          of.first = Math.min(of.first, touched.first)
          of.last = Math.max(of.last, touched.last)
        }
      }
    }
    // Of what blocks share an operand has only as much as lies between its ends.
    const bytes = (way) =>
      [...operands[way].values()].reduce((sum, of) => sum + Math.min(of.bytes, 32 * (of.last - of.first + 1)), 0)
    const asked = (way) => [...operands[way].values()].reduce((sum, of) => sum + of.bytes, 0)
    return {
      counts: total,
      blocks: count,
      read: bytes('read'),
      written: bytes('written'),
      asked: asked('read') + asked('written'),
    }
  }
}

function constantsOf(grid, threads, args) {
  const bytes = new Uint8Array(Math.ceil((PARAMETERS_AT + args.length) / 8) * 8 + 64)
  new Int32Array(bytes.buffer).set([threads, 1, 1, ...grid])
  new DataView(bytes.buffer).setBigUint64(WINDOW_AT, BigInt(WINDOW), true)
  bytes.set(args, PARAMETERS_AT)
  return bytes
}

/** Words of the arguments that look like addresses, ascending. */
function pointersIn(args) {
  const found = new Set()
  const view = new DataView(args.buffer, args.byteOffset, args.length)
  for (let at = 0; at + 8 <= args.length; at += 8) {
    const word = view.getBigUint64(at, true)
    if (word >= 1n << 32n && word < 1n << 48n) found.add(Number(word))
  }
  return [...found].sort((a, b) => a - b)
}

class Block {
  counts = new Counts()
  read = new Map()
  written = new Map()
  #memory = new Int32Array((256 << 10) / 4).fill(FILL)

  constructor(code, constants, threads, place, pointers) {
    this.code = code
    this.threads = threads
    this.place = place
    this.pointers = pointers
    this.bytes = constants
    this.words = new Int32Array(constants.buffer)
    this.issues = new Uint32Array(code.length)
    this.conflicts = new Uint32Array(code.length)
  }

  run() {
    for (this.warp = 0; this.warp * 32 < this.threads; this.warp++) this.#runWarp()
    this.code.forEach((i, at) => {
      this.counts.issued += this.issues[at]
      this.counts.shared += this.conflicts[at]
      this.counts.units[unitOf(i)] += this.issues[at]
    })
  }

  // ---- where a warp goes -----------------------------------------------------------------------------------------

  /** Lanes that are at different places are groups; the one that is furthest behind goes on. */
  #runWarp() {
    const lanes = new Lanes()
    lanes.P[7] = -1
    this.lanes = lanes
    const left = this.threads - this.warp * 32
    this.alive = left >= 32 ? -1 : (1 << left) - 1
    this.groups = [{ at: 0, mask: this.alive }]
    this.barriers = Array.from({ length: 17 }, () => ({ of: 0, here: 0, at: 0 }))
    let issued = 0
    while (this.groups.length > 0) {
      let group = this.groups[0]
      for (const other of this.groups) if (other.at < group.at) group = other
      const same = this.groups.filter((other) => other.at === group.at)
      if (same.length > 1) {
        group = { at: group.at, mask: same.reduce((mask, { mask: more }) => mask | more, 0) }
        this.groups = [...this.groups.filter((other) => other.at !== group.at), group]
      }
      const alone = this.groups.length === 1
      do {
        if (++issued > MOST_ISSUED) throw new Elsewhere('a warp does not come to an end')
      } while (this.#step(group) && alone)
    }
  }

  /** One instruction of a group; whether the group is still the same. */
  #step(group) {
    const i = this.code[group.at]
    const { lanes } = this
    this.at = group.at
    this.issues[group.at]++
    const mask = i.guard ? group.mask & i.guard(lanes.P, lanes.Q) : group.mask
    if (!i.control) {
      if (mask !== 0)
        i.run(this, helpers, lanes.R, lanes.F, lanes.U, lanes.V, lanes.P, lanes.Q, this.words, this.bytes, lanes.A, mask)
      group.at++
      return true
    }
    return this.#control(i, group, mask)
  }

  #control(i, group, guarded) {
    let mask = guarded
    for (const predicate of i.predicates ?? []) mask &= predicate(this.lanes.P, this.lanes.Q)
    const next = group.at + 1
    switch (i.control) {
      case 'BSSY':
        this.barriers[i.barrier].of = group.mask
        group.at = next
        return true
      case 'BSYNC':
        return this.#wait(this.barriers[i.barrier], group, next)
      case 'WARPSYNC':
        if (i.mods[0] === 'ALL') {
          this.barriers[16].of = this.alive
          return this.#wait(this.barriers[16], group, next)
        }
        group.at = next
        return true
      case 'BREAK':
        this.barriers[i.barrier].of &= ~mask
        group.at = next
        return true
      case 'EXIT':
        this.alive &= ~mask
        for (const barrier of this.barriers) barrier.of &= ~mask
        group.mask &= ~mask
        group.at = next
        this.#release()
        if (group.mask === 0) this.groups = this.groups.filter((other) => other !== group)
        return false
      case 'RET': {
        // Lanes that came from elsewhere go back there.
        const back = this.lanes.R[i.register * 32 + this.first(mask || 1)]
        for (let l = 0; l < 32; l++) if (this.lanes.R[i.register * 32 + l] !== back) mask &= ~(1 << l)
        return this.#branch(group, mask, i.index.get(back), mask === group.mask ? next : group.at)
      }
      case 'DIV': // a warp that is together goes on
        group.at = next
        return true
      case 'CONV':
        group.at = i.target
        return true
      default: // BRA, CALL
        return this.#branch(group, mask, i.target, next)
    }
  }

  #branch(group, mask, target, next) {
    if (mask === group.mask) {
      group.at = target
      return this.groups.length === 1
    }
    group.at = next
    if (mask === 0) return true
    group.mask &= ~mask
    this.groups.push({ at: target, mask })
    return false
  }

  #wait(barrier, group, next) {
    if (group.mask === (barrier.of & this.alive) && barrier.here === 0) {
      group.at = next
      return true
    }
    barrier.here |= group.mask
    barrier.at = next
    this.groups = this.groups.filter((other) => other !== group)
    this.#release()
    return false
  }
  /** Groups whose last lanes have come go on. */
  #release() {
    for (const barrier of this.barriers) {
      if (barrier.here === 0 || (barrier.of & this.alive & ~barrier.here) !== 0) continue
      this.groups.push({ at: barrier.at, mask: barrier.here })
      barrier.here = 0
    }
  }

  // ---- what translated instructions ask for ----------------------------------------------------------------------

  first(mask) {
    return 31 - Math.clz32(mask & -mask)
  }
  special(name, lane) {
    if (name === 'SR_TID.X') return this.warp * 32 + lane
    if (name === 'SR_LANEID') return lane
    if (name === 'SR_LTMASK') return (1 << lane) - 1
    if (name.startsWith('SR_CTAID')) return this.place['XYZ'.indexOf(name.at(-1))]
    return 0
  }
  predicates(lane) {
    let bits = 0
    for (let p = 0; p < 7; p++) bits |= ((this.lanes.P[p] >>> lane) & 1) << p
    return bits
  }
  copy(register) {
    return this.lanes.R.slice(register * 32, register * 32 + 32)
  }
  count(bits) {
    let n = 0
    for (let left = bits; left !== 0; left &= left - 1) n++
    return n
  }
  asFloat(bits) {
    return new Float32Array(new Int32Array([bits]).buffer)[0]
  }
  shiftLeft(low, high, by) {
    return Number(BigInt.asIntN(32, (((BigInt(high) << 32n) | BigInt(low >>> 0)) << BigInt(by)) >> 32n))
  }
  shiftRight(low, high, by) {
    return Number(BigInt.asIntN(32, ((BigInt(high) << 32n) | BigInt(low >>> 0)) >> BigInt(by)))
  }
  /** The word of a load from memory. */
  load(address, bytes) {
    const at = address - WINDOW
    if (at < 0 || at >= this.bytes.length) return bytes < 4 ? FILL & 0xffff : FILL
    return bytes === 1 ? this.bytes[PARAMETERS_AT + at] : this.words[(PARAMETERS_AT + at) >> 2]
  }
  double(register, lane) {
    PAIR[0] = this.lanes.R[register * 32 + lane]
    PAIR[1] = this.lanes.R[register * 32 + 32 + lane]
    return DOUBLE[0]
  }
  setDouble(register, lane, value) {
    DOUBLE[0] = value
    this.lanes.R[register * 32 + lane] = PAIR[0]
    this.lanes.R[register * 32 + 32 + lane] = PAIR[1]
  }
  highWord(value) {
    DOUBLE[0] = value
    return PAIR[1]
  }
  uniformDouble(low, high) {
    PAIR[0] = low
    PAIR[1] = high
    return DOUBLE[0]
  }
  read32(address) {
    return this.#memory[(address & 0x3ffff) >> 2]
  }
  write(address, value) {
    this.#memory[(address & 0x3ffff) >> 2] = value
  }

  /** Cycles of shared memory: 32 banks of 4 bytes; wide accesses go by parts of a warp. */
  shared(addresses, mask, bytes) {
    const lanes = bytes === 16 ? 8 : bytes === 8 ? 16 : 32
    for (let from = 0; from < 32; from += lanes)
      this.conflicts[this.at] += this.#conflicts(addresses, mask, bytes, from, from + lanes)
  }
  #conflicts(addresses, mask, bytes, from, to) {
    let most = 0
    BANKS.fill(0)
    for (let l = from; l < to; l++) {
      if (!((mask >>> l) & 1)) continue
      for (let b = 0; b < bytes; b += 4) {
        const word = (addresses[l] + b) >> 2
        const bank = word & 31
        let n = 0
        while (n < BANKS[bank] && BANK_WORDS[bank * 32 + n] !== word) n++
        if (n < BANKS[bank]) continue
        BANK_WORDS[bank * 32 + n] = word
        BANKS[bank]++
        if (n >= most) most = n + 1
      }
    }
    return most
  }

  global(addresses, mask, bytes, writes) {
    const start = addresses[this.first(mask)]
    if (mask === 0) return
    if (start >= WINDOW && start < WINDOW + this.bytes.length) {
      this.counts.global++
      return
    }
    const of = writes ? this.written : this.read
    const operand = this.#operandAt(start)
    if (!of.has(operand)) of.set(operand, new Touched())
    const touched = of.get(operand)
    let count = 0
    for (let l = 0; l < 32; l++) {
      if (!((mask >>> l) & 1)) continue
      const last = Math.floor((addresses[l] + bytes - 1) / 32)
      for (let sector = Math.floor(addresses[l] / 32); sector <= last; sector++) {
        let n = count - 1
        while (n >= 0 && SECTORS[n] !== sector) n--
        if (n < 0) SECTORS[count++] = sector
      }
    }
    for (let n = 0; n < count; n++) touched.add(SECTORS[n])
    this.counts.global += Math.ceil(count / 4)
  }
  /** The argument that an address belongs to. */
  #operandAt(address) {
    if (address >= 2 ** 48) throw new Elsewhere('an address is from memory')
    let found = 0
    for (const pointer of this.pointers) if (pointer <= address) found = pointer
    return found
  }
}
