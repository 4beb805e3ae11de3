import { readFileSync } from 'node:fs'
import path from 'node:path'
import { afterEach, expect, it, vi } from 'vitest'
import { EffnetError, version } from '../../ts/index.js'
import { packageRoot } from '../../ts/paths.js'

afterEach(() => vi.resetModules())

it('version is that of package.json', () => {
  const { version: there } = JSON.parse(readFileSync(path.join(packageRoot(), 'package.json'), 'utf8')) as { version: string }
  expect(version).toBe(there)
})
