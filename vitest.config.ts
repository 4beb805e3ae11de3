import { availableParallelism } from 'node:os'
import { defineConfig } from 'vitest/config'

// Forks, not threads: a native crash then names its test file instead of ending the whole run.
export default defineConfig({
  test: {
    include: ['test/**/*.test.{ts,mjs}'],
    pool: 'forks',
    // By itself it leaves a core idle, which of two is one too many.
    maxWorkers: availableParallelism(),
    // Nothing is measured, and nothing kept in a home folder: a test that wants it says so.
    env: { EFFNET_CUDA_TUNE: '0' },
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
})
