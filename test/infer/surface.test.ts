import { readFileSync } from 'node:fs'
import path from 'node:path'
import { afterEach, expect, it, vi } from 'vitest'
import { createModel, EffnetError, version } from '../../ts/index.js'
import { packageRoot } from '../../ts/paths.js'

afterEach(() => vi.resetModules())

it('version is that of package.json', () => {
  const { version: there } = JSON.parse(readFileSync(path.join(packageRoot(), 'package.json'), 'utf8')) as { version: string }
  expect(version).toBe(there)
})

it('an error of another copy of the package is an EffnetError too, another error is none', async () => {
  vi.resetModules()
  const { EffnetError: Other } = await import('../../ts/errors.js')
  expect(Other).not.toBe(EffnetError)
  for (const error of [new Other('EFF_IO', 'x'), new EffnetError('EFF_IO', 'x')]) {
    expect(error instanceof EffnetError).toBe(true)
    expect(error instanceof Other).toBe(true)
    expect(error instanceof Error).toBe(true)
  }
  for (const none of [new Error('x'), { code: 'EFF_IO' }, null, 'EFF_IO']) expect(none instanceof EffnetError).toBe(false)
  class Mine extends EffnetError {}
  expect(new EffnetError('EFF_IO', 'x') instanceof Mine).toBe(false)
  expect(new Mine('EFF_IO', 'x') instanceof Mine && new Mine('EFF_IO', 'x') instanceof EffnetError).toBe(true)
})

it.each([
  ['device', null],
  ['deterministic', 'yes'],
  ['deterministic', null],
])('createModel refuses %s: %j and does not read it as the default', async (name, wrong) => {
  await expect(createModel('efficientnet_b0', { [name]: wrong, threads: 1 })).rejects.toMatchObject({
    code: 'EFF_CONFIG_VALUE',
    message: expect.stringContaining(name),
  })
})
