import path from 'node:path'
import { afterEach, expect, it, vi } from 'vitest'
import { packageRoot } from '../../ts/paths.js'

afterEach(() => {
  vi.unstubAllEnvs()
  vi.resetModules()
})

it.each([
  ['/nonexist.node', /^EFFNET_ADDON: \/nonexist\.node \(not found\)$/],
  [path.join(packageRoot(), 'LICENSE'), /^EFFNET_ADDON: \S+LICENSE \(/],
])('EFFNET_ADDON=%s is an error that names it; no other addon takes its place', async (file, says) => {
  vi.stubEnv('EFFNET_ADDON', file)
  vi.resetModules()
  const { binding } = await import('../../ts/binding.js')
  expect(() => binding()).toThrow(expect.objectContaining({ code: 'EFF_BACKEND_MISSING', message: expect.stringMatching(says) }))
})
