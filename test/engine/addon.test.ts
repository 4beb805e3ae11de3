/** What is said where the addon is not there. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, expect, it, vi } from 'vitest'

const root = vi.hoisted(() => ({ dir: '' }))
vi.mock('../../ts/paths.js', () => ({ packageRoot: () => root.dir }))

beforeEach(() => {
  root.dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-addon-'))
  vi.resetModules()
  vi.stubEnv('EFFNET_ADDON', '')
})
afterEach(() => {
  vi.unstubAllEnvs()
  rmSync(root.dir, { recursive: true, force: true })
})

const missing = async () => {
  const { binding } = await import('../../ts/binding.js')
  try {
    return binding()
  } catch (error) {
    return error
  }
}

it('in a checkout it is to be built', async () => {
  mkdirSync(path.join(root.dir, 'native'))
  expect(await missing()).toMatchObject({ code: 'EFF_BACKEND_MISSING', hint: expect.stringMatching(/^npm run setup/) })
})

it('in an installed package, which has no sources, it is not', async () => {
  const error = await missing()
  expect(error).toMatchObject({ code: 'EFF_BACKEND_MISSING', hint: expect.stringMatching(/Linux x64/) })
  expect((error as { hint: string }).hint).not.toMatch(/npm run/)
})

it('the package is for what its addon is built for', () => {
  const { os: systems, cpu } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
  expect([systems, cpu]).toEqual([['linux'], ['x64']])
})
