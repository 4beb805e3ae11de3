import { defineConfig } from 'vitest/config'

// Forks, not threads: a native crash then names its test file instead of ending the whole run.
export default defineConfig({
  test: {
    include: ['test/**/*.test.{ts,mjs}'],
    pool: 'forks',
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
})
