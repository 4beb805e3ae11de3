/** The laboratory's machine (native/lab/sass) on code whose instructions and bytes are counted by hand. */
import { readFileSync } from 'node:fs'
import { expect, it } from 'vitest'
import { Machine } from '../../native/lab/sass/machine.mjs'
import { parseKernels } from '../../native/lab/sass/read.mjs'

/** As cuobjdump prints it; names of instructions are all that its lines have in common. */
const fill = readFileSync(new URL('../fixtures/sass/fill_i32.txt', import.meta.url), 'utf8')

it('reads places, guards, names and operands', () => {
  const code = parseKernels(fill).get('fill_i32')
  expect(code).toHaveLength(56)
  expect(code[0x160 / 16]).toMatchObject({ at: 0x160, guard: 'P1', name: 'BRA', operands: ['0x270'] })
  expect(code[0x1c0 / 16]).toMatchObject({ guard: '', base: 'LEA', operands: ['R8', 'P1', 'R13', 'R18', '0x4'] })
  expect(code[0x220 / 16]).toMatchObject({ base: 'STG', mods: ['E', '128'], operands: ['desc[UR4][R8.64]', 'R4'] })
})

it('goes through loops, branches and guards as the launch’s arguments say', () => {
  // 1024 vectors of four by 512 threads, and 3 values that are left, which one warp's lanes take.
  const n = 4 * 1024 + 3
  const args = new DataView(new ArrayBuffer(24))
  args.setBigUint64(0, 1n << 33n, true)
  args.setBigInt64(8, BigInt(n), true)
  args.setFloat64(16, 7, true)
  const machine = new Machine(parseKernels(fill))
  const { counts, blocks, read, written } = machine.launch({
    kernel: 'fill_i32',
    grid: [2, 1, 1],
    threads: 256,
    args: new Uint8Array(args.buffer),
  })
  // Before the loop 23 and 5 of a warp, twice the 11 of its body, 2 behind it; 5 for what is left.
  expect(counts.issued).toBe(16 * (23 + 5 + 2 * 11 + 2) + 5)
  expect(blocks).toBe(2)
  expect(read).toBe(0)
  expect(written).toBe(Math.ceil((4 * n) / 32) * 32)
  // Stores: 16 sectors of a warp in 4 cycles, and the 12 bytes in one.
  expect(counts.global).toBe(2 * 16 * 4 + 1)
  expect(counts.shared).toBe(0)
})

it('counts the conflicts of banks', () => {
  const lines = (text) =>
    text
      .trim()
      .split('\n')
      .map((line, i) => `        /*${(16 * i).toString(16).padStart(4, '0')}*/   ${line.trim()} ;`)
      .join('\n')
  const code = lines(`
    S2R R0, SR_TID.X
    IMAD.SHL.U32 R1, R0, 0x80, RZ
    LDS R2, [R1]
    IMAD.SHL.U32 R1, R0, 0x8, RZ
    LDS R2, [R1]
    IMAD.SHL.U32 R1, R0, 0x4, RZ
    LDS R2, [R1]
    LDS R2, [RZ]
    EXIT`)
  const machine = new Machine(parseKernels(`Function : conflicts\n${code}\n`))
  const { counts } = machine.launch({ kernel: 'conflicts', grid: [1, 1, 1], threads: 32, args: new Uint8Array(8) })
  // All lanes in one bank, two in each, one in each, all at one word.
  expect(counts.shared).toBe(32 + 2 + 1 + 1)
  expect(counts.issued).toBe(9)
  expect(counts.units).toMatchObject({ imad: 3, memory: 4 })
})
