/** Tensors between files and arenas through the addon: what checkpoints are made of. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { ARENA, binding, type MemoryHandle, type TensorTransfer } from '../../ts/binding.js'
import { EffnetError } from '../../ts/errors.js'
import { sha256 } from './helpers/fixtures.js'

const folder = mkdtempSync(path.join(tmpdir(), 'effnet-transfer-'))
afterAll(() => rmSync(folder, { recursive: true }))
const at = (name: string): string => path.join(folder, name)

const memoryOf = (bytes: number): MemoryHandle => binding().createMemory([bytes, 0, 0, 0, bytes, 0, 0, 0, 0])
const put = (memory: MemoryHandle, values: Float32Array, arena: number = ARENA.weights): void =>
  binding().writeArena(memory, arena, 0, new Uint8Array(values.buffer))
const get = (memory: MemoryHandle, n: number, arena: number = ARENA.weights): Float32Array => {
  const values = new Float32Array(n)
  binding().readArena(memory, arena, 0, new Uint8Array(values.buffer))
  return values
}
const plain = (n: number, change: Partial<TensorTransfer> = {}): TensorTransfer => ({
  arena: ARENA.weights,
  offset: 0,
  fileOffset: 0,
  dtype: 'F32',
  permute: 'none',
  shape: [n],
  ...change,
})
const failure = (promise: Promise<unknown>): Promise<EffnetError> =>
  promise.then(
    () => expect.fail('did not fail'),
    (e: EffnetError) => e,
  )

describe('saveTensors and loadTensors', () => {
  it('write header and values in PyTorch’s layout, hashed, and read them back', async () => {
    const memory = memoryOf(4 * 1000)
    put(
      memory,
      Float32Array.from({ length: 60 }, (_, i) => i),
    )
    const tensors = [
      plain(0, { permute: 'ohwi', shape: [2, 3, 2, 2] }),
      plain(0, { offset: 96, fileOffset: 96, permute: 'hwc', shape: [4, 1, 3, 3] }),
    ]
    const header = Buffer.from('header')
    const [written] = await binding().saveTensors(memory, [{ path: at('a'), header, dataBytes: 240, tensors }])
    const bytes = readFileSync(at('a'))
    const [conv, depthwise] = [bytes.subarray(6, 102), bytes.subarray(102)].map((b) => sha256(b).slice(0, 8))
    expect(written).toEqual({ bytes: 246, sha256: sha256(bytes), tensors: `${conv}${depthwise}` })
    expect(await binding().hashFile(at('a'))).toEqual({ bytes: 246, sha256: sha256(bytes) })
    const values = new Float32Array(new Uint8Array(bytes.subarray(6)).buffer)
    // OIHW from OHWI: (o, i, h, w) lies at ((o*2 + h)*2 + w)*3 + i.
    expect([...values.subarray(0, 8)]).toEqual([0, 3, 6, 9, 1, 4, 7, 10])
    // C1HW from HWC: (c, k) lies at 24 + k*4 + c.
    expect([...values.subarray(24, 34)]).toEqual([24, 28, 32, 36, 40, 44, 48, 52, 56, 25])
    await binding().loadTensors(
      memory,
      at('a'),
      6,
      tensors.map((t) => ({ ...t, arena: ARENA.ema })),
    )
    expect(get(memory, 60, ARENA.ema)).toEqual(get(memory, 60))
    binding().closeMemory(memory)
  })

  it.each([
    ['F16', Buffer.from('003c00c0', 'hex'), [1, -2]],
    ['BF16', Buffer.from('803f00c0', 'hex'), [1, -2]],
    ['F64', Buffer.from(new Float64Array([1, -2]).buffer), [1, -2]],
  ] as const)('convert %s both ways', async (dtype, bytes, values) => {
    writeFileSync(at(dtype), bytes)
    const memory = memoryOf(64)
    await binding().loadTensors(memory, at(dtype), 0, [plain(2, { dtype })])
    expect([...get(memory, 2)]).toEqual(values)
    await binding().saveTensors(memory, [
      { path: at('out'), header: new Uint8Array(), dataBytes: bytes.length, tensors: [plain(2, { dtype })] },
    ])
    expect(readFileSync(at('out'))).toEqual(bytes)
  })

  it('save what the arena held at the call, whatever is written afterwards', async () => {
    const n = 4_000_000
    const memory = memoryOf(4 * n)
    put(memory, new Float32Array(n).fill(1))
    const saved = binding().saveTensors(memory, [
      { path: at('big'), header: new Uint8Array(), dataBytes: 4 * n, tensors: [plain(n)] },
    ])
    put(memory, new Float32Array(n).fill(2))
    const [written] = await saved
    expect(written!.sha256).toBe(sha256(new Uint8Array(new Float32Array(n).fill(1).buffer)))
    binding().closeMemory(memory)
  })

  it('load several files at once', async () => {
    const memory = memoryOf(64)
    writeFileSync(at('one'), Buffer.from(new Float32Array([1, 2]).buffer))
    writeFileSync(at('two'), Buffer.from(new Float32Array([3, 4]).buffer))
    await Promise.all([
      binding().loadTensors(memory, at('one'), 0, [plain(2)]),
      binding().loadTensors(memory, at('two'), 0, [plain(2, { offset: 8 })]),
    ])
    expect([...get(memory, 4)]).toEqual([1, 2, 3, 4])
  })

  it('give an error where the list is too long for the memory, and the process goes on', () => {
    const endless: TensorTransfer[] = []
    endless.length = 2 ** 32 - 1
    expect(() => binding().loadTensors(memoryOf(4), at('none'), 0, endless)).toThrow(
      expect.objectContaining({ code: expect.stringMatching(/^EFF_(OOM|INVALID_ARGUMENT)$/) }),
    )
  })

  it('take changes of the arenas in turns', async () => {
    const n = 1 << 20
    const memory = memoryOf(4 * n)
    const values = Float32Array.from({ length: n }, (_, i) => i)
    put(memory, values)
    const file = at('turns')
    await binding().saveTensors(memory, [{ path: file, header: new Uint8Array(), dataBytes: 4 * n, tensors: [plain(n)] }])
    for (let round = 0; round < 8; round++) {
      // Replaced and exchanged while they are loaded: each value is the file's or zero, and no page is gone.
      await Promise.all([
        binding().loadTensors(memory, file, 0, [plain(n)]),
        binding().copyArena(memory, -1, ARENA.weights),
        binding().swapArenas(memory, ARENA.weights, ARENA.ema),
        binding().loadTensors(memory, file, 0, [plain(n)]),
      ])
      const found = get(memory, n)
      expect(found.every((x, i) => x === 0 || x === i)).toBe(true)
    }
  })

  it('name what is wrong with a file', async () => {
    const memory = memoryOf(64)
    const missing = await failure(binding().loadTensors(memory, at('none'), 0, [plain(2)]))
    expect(missing).toBeInstanceOf(EffnetError)
    expect([missing.code, missing.message]).toEqual(['EFF_IO', `${at('none')}: open: No such file or directory`])
    writeFileSync(at('short'), Buffer.alloc(7))
    const short = await failure(binding().loadTensors(memory, at('short'), 0, [plain(2)]))
    expect(short.message).toContain('8 bytes at 0 lie outside the file')
    expect((await failure(binding().fsync(at('none')))).code).toBe('EFF_IO')
    expect((await failure(binding().hashFile(folder))).code).toBe('EFF_IO')
    await binding().fsync(folder)
  })

  it.skipIf(!existsSync('/dev/full'))('tell a full disk', async () => {
    const memory = memoryOf(64)
    const full = await failure(
      binding().saveTensors(memory, [{ path: '/dev/full', header: new Uint8Array(8), dataBytes: 8, tensors: [plain(2)] }]),
    )
    expect(full.code).toBe('EFF_CKPT_NO_SPACE')
    expect(full.message).toMatch(/needs .* MB/)
  })

  it.each([
    plain(17),
    plain(1, { offset: 64 }),
    plain(1, { offset: 2 }),
    plain(1, { arena: ARENA.input }),
    plain(1, { fileOffset: 8 }),
    plain(1, { permute: 'hwc', shape: [1, 2, 1, 1] }),
    plain(1, { shape: [-1] }),
    plain(1, { dtype: 'I8' as 'F32' }),
  ])('refuse %j', (tensor) => {
    const memory = memoryOf(64)
    expect(() =>
      binding().saveTensors(memory, [{ path: at('x'), header: new Uint8Array(), dataBytes: 8, tensors: [tensor] }]),
    ).toThrowError(expect.objectContaining({ code: 'EFF_INVALID_ARGUMENT' }))
    expect(existsSync(at('x'))).toBe(false)
  })
})
