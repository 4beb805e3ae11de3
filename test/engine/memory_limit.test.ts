/** What a process may still allocate, from made-up /proc and /sys. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { ARENA } from '../../ts/graph/plan_format.js'
import { availableMemory } from '../../ts/runtime/memory_limit.js'
import { checkMemory } from '../../ts/runtime/session.js'

const GIB = 2 ** 30
let root: string

beforeEach(() => {
  root = mkdtempSync(path.join(os.tmpdir(), 'effnet-memory-'))
})
afterEach(() => rmSync(root, { recursive: true, force: true }))

function file(name: string, text: string): void {
  mkdirSync(path.dirname(path.join(root, name)), { recursive: true })
  writeFileSync(path.join(root, name), text)
}

describe('memory that is available', () => {
  it('is what the machine has free, swap too', async () => {
    file('proc/meminfo', 'MemTotal:       9000 kB\nMemAvailable:   4096 kB\nSwapFree:  1024 kB\n')
    expect(await availableMemory(root)).toBe(5120 * 1024)
  })

  it('is less in a control group, and in the group above it', async () => {
    file('proc/meminfo', 'MemAvailable:   8388608 kB\nSwapFree:  0 kB\n')
    file('proc/self/cgroup', '0::/box/job\n')
    file('sys/fs/cgroup/box/job/memory.max', 'max\n')
    file('sys/fs/cgroup/box/job/memory.current', `${GIB}\n`)
    expect(await availableMemory(root)).toBe(8 * GIB)
    file('sys/fs/cgroup/box/memory.max', `${4 * GIB}\n`)
    file('sys/fs/cgroup/box/memory.current', `${3 * GIB}\n`)
    file('sys/fs/cgroup/box/memory.stat', `anon 5\ninactive_file ${GIB}\nactive_file ${GIB / 2}\n`)
    expect(await availableMemory(root)).toBe(2.5 * GIB)
  })

  it('knows the older groups', async () => {
    file('proc/meminfo', 'MemAvailable:   8388608 kB\n')
    file('sys/fs/cgroup/memory/memory.limit_in_bytes', `${2 * GIB}\n`)
    file('sys/fs/cgroup/memory/memory.usage_in_bytes', `${GIB}\n`)
    file('sys/fs/cgroup/memory/memory.stat', `total_inactive_file ${GIB / 4}\n`)
    expect(await availableMemory(root)).toBe(1.25 * GIB)
  })

  it('is not limited where nothing says so', async () => {
    expect(await availableMemory(root)).toBe(Infinity)
  })
})

describe('a plan too large', () => {
  const arenas = Array.from({ length: 9 }, () => 0)
  arenas[ARENA.weights] = GIB / 4
  arenas[ARENA.activations] = 8 * GIB

  it('is refused with the batch that fits', () => {
    const check = () => checkMemory(arenas, [], 'a plan', 32, 2 * GIB)
    expect(check).toThrow(expect.objectContaining({ code: 'EFF_OOM', hint: '--batch-size 6' }))
    // 0.9 of 2 GiB less the weights, a quarter GiB an image.
    expect(() =>
      checkMemory(
        arenas.map((b, i) => (i === ARENA.activations ? (b * 6) / 32 : b)),
        [],
        'a plan',
        6,
        2 * GIB,
      ),
    ).not.toThrow()
  })

  it('is only charged for what is not there yet', () => {
    const held = [...arenas]
    expect(() => checkMemory(arenas, held, 'a plan', 32, GIB)).not.toThrow()
  })
})
