/**
 * Native memory is reported to V8. What it does with the figure is what shows: `process.memoryUsage().external` of Node 20
 * counts JavaScript's own buffers only, but a growing total makes V8 collect handles that nobody holds any more. Without
 * the reports these tests would hold gigabytes: a handle by itself is a few dozen bytes.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it } from 'vitest'
import { ARENA, binding, type MemoryHandle } from '../../ts/binding.js'

const SIZE = 64 << 20
const COUNT = 60

/** Bytes of arenas still held after handles were made and forgotten. */
async function heldAfter(make: () => MemoryHandle | Promise<MemoryHandle>): Promise<number> {
  const before = binding().memoryUsage().arenas
  for (let i = 0; i < COUNT; i++) {
    await make()
    // Finalizers run between tasks.
    await sleep(1)
  }
  return binding().memoryUsage().arenas - before
}

it('arenas of forgotten handles are collected', async () => {
  expect(await heldAfter(() => binding().createMemory([SIZE]))).toBeLessThan((COUNT * SIZE) / 2)
})

it('arenas that grew later count too', async () => {
  const grow = async () => {
    const memory = binding().createMemory([0])
    await binding().ensureArena(memory, ARENA.activations, SIZE)
    return memory
  }
  expect(await heldAfter(grow)).toBeLessThan((COUNT * SIZE) / 2)
})

it('loaders count too, with the batches that they may come to hold', async () => {
  const before = binding().memoryUsage().handles
  for (let i = 0; i < COUNT; i++) {
    // Three batches of 25 MB each, of which none is ever made.
    binding().createLoader({
      files: [],
      labels: new Int32Array(0),
      batchSize: 8,
      decode: { mode: 'train', size: 1024 },
      workers: 1,
      prefetch: 2,
    })
    await sleep(1)
  }
  expect(binding().memoryUsage().handles - before).toBeLessThan(COUNT / 2)
})
