import { availableParallelism } from 'node:os'
import { defineConfig } from 'vitest/config'
import { BaseSequencer, type TestSpecification } from 'vitest/node'

/** The file that takes minutes begins, so that none waits for it at the end. */
class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const isLong = ({ moduleId }: TestSpecification): number => Number(moduleId.endsWith('/cuda_layers.test.ts'))
    return (await super.sort(files)).sort((a, b) => isLong(b) - isLong(a))
  }
}

// Forks, not threads: a native crash then names its test file instead of ending the whole run.
export default defineConfig({
  test: {
    include: ['test/**/*.test.{ts,mjs}'],
    pool: 'forks',
    // By itself it leaves a core idle.
    maxWorkers: availableParallelism(),
    sequence: { sequencer: LongestFirst },
    // Nothing is measured, and nothing kept in a home folder: a test that wants it says so.
    env: { EFFNET_CUDA_TUNE: '0' },
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
})
