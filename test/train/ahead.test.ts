import { beforeEach, describe, expect, it } from 'vitest'
import type { NativeBatch } from '../../ts/data/loader.js'
import { ahead } from '../../ts/train/ahead.js'

describe('batches ahead', () => {
  const log: string[] = []
  const batch = (i: number) => ({ nextSample: i, release: () => log.push(`release ${i}`) }) as unknown as NativeBatch
  async function* batches(signal: AbortSignal): AsyncGenerator<NativeBatch, void, undefined> {
    try {
      for (let i = 0; i < 4 && !signal.aborted; i++) {
        log.push(`pull ${i}`)
        yield batch(i)
      }
    } finally {
      log.push('closed')
    }
  }
  const stage = async ({ nextSample }: NativeBatch): Promise<void> => {
    log.push(`stage ${nextSample}`)
  }
  const onUnstaged = (cause: unknown) => log.push(`unstaged: ${(cause as Error).message}`)
  const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))
  beforeEach(() => {
    log.length = 0
  })

  it('are pulled and staged while the one before is worked on, and given back behind their work, the last one too', async () => {
    for await (const { nextSample } of ahead({ batches, stage, onUnstaged })) {
      await turn()
      log.push(`work ${nextSample}`)
    }
    expect(log).toEqual([
      ...['pull 0', 'stage 0', 'pull 1', 'stage 1', 'work 0', 'release 0'],
      ...['pull 2', 'stage 2', 'work 1', 'release 1', 'pull 3', 'stage 3', 'work 2', 'release 2'],
      ...['closed', 'work 3', 'release 3'],
    ])
  })

  it('come all the same where one could not be staged, which is told once', async () => {
    const failing = async (next: NativeBatch): Promise<void> => {
      await stage(next)
      throw new Error('no room')
    }
    let worked = 0
    for await (const _ of ahead({ batches, stage: failing, onUnstaged })) worked++
    expect(worked).toBe(4)
    expect(log.filter((line) => /stage/.test(line))).toEqual(['stage 0', 'unstaged: no room'])
  })

  it.each(['leaves', 'throws'])('are all given back where the loop %s early', async (how) => {
    const loop = async (): Promise<void> => {
      for await (const { nextSample } of ahead({ batches, stage, onUnstaged })) {
        await turn()
        if (nextSample === 1 && how === 'throws') throw new Error('from the step')
        if (nextSample === 1) break
      }
    }
    await loop().catch((cause: unknown) => expect(cause).toMatchObject({ message: 'from the step' }))
    const released = log.filter((line) => /release/.test(line)).sort()
    expect(released).toEqual(['release 0', 'release 1', 'release 2'])
    expect(log).toContain('closed')
  })

  it('are not waited for once the loop is left: the source is told to end', async () => {
    async function* stuck(signal: AbortSignal): AsyncGenerator<NativeBatch, void, undefined> {
      yield batch(0)
      await new Promise((resolve) => signal.addEventListener('abort', resolve))
    }
    for await (const _ of ahead({ batches: stuck, stage, onUnstaged })) break
    expect(log).toEqual(['stage 0', 'release 0'])
  })
})
