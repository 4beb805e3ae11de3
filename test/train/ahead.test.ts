import { describe, expect, it } from 'vitest'
import type { NativeBatch } from '../../ts/data/loader.js'
import { ahead } from '../../ts/train/ahead.js'

describe('batches ahead', () => {
  const log: string[] = []
  async function* batches(): AsyncGenerator<NativeBatch, void, undefined> {
    try {
      for (let i = 0; i < 4; i++) {
        log.push(`pull ${i}`)
        yield { nextSample: i } as NativeBatch
      }
    } finally {
      log.push('closed')
    }
  }
  const stage = async (batch: NativeBatch): Promise<void> => {
    log.push(`stage ${batch.nextSample}`)
    if (batch.nextSample === 1) throw new Error('no room')
  }
  const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

  it('are pulled and staged while the one before is worked on; what could not be staged comes all the same', async () => {
    log.length = 0
    for await (const batch of ahead(batches(), stage)) {
      await turn()
      log.push(`work ${batch.nextSample}`)
    }
    expect(log).toEqual([
      ...['pull 0', 'stage 0', 'pull 1', 'stage 1', 'work 0', 'pull 2', 'stage 2', 'work 1'],
      ...['pull 3', 'stage 3', 'work 2', 'closed', 'work 3'],
    ])
  })

  it('are given back where the loop ends early', async () => {
    log.length = 0
    for await (const batch of ahead(batches(), stage)) if (batch.nextSample === 1) break
    expect(log.at(-1)).toBe('closed')
  })
})
