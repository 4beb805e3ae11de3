/** The archive for a GPU: that it would be refused where a program of it does not start there. */
import { execFileSync } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { lacksForHopper, unresolved } from '../../scripts/lib/packed.mjs'

let dir
beforeEach(() => {
  dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-packed-'))
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

describe('libraries of an archive', () => {
  const PLACES = execFileSync('/bin/bash', ['scripts/gpu-check.sh', '--library-folders'], { encoding: 'utf8' }).trim().split(' ')
  const addon = path.resolve('build/Release/effnet.node')
  /** The addon where nothing of the build lies beside it, and all that it needs in folders of the archive. */
  const pack = () => {
    for (const name of ['tests', ...PLACES]) mkdirSync(path.join(dir, name), { recursive: true })
    cpSync(addon, path.join(dir, 'tests/program'))
    writeFileSync(path.join(dir, 'tests/notes.txt'), 'no program')
    const needed = execFileSync('ldd', [addon], { encoding: 'utf8' }).matchAll(/^\s*(lib\S+) => (\S+)/gm)
    for (const [, name, file] of needed)
      if (/^lib(gomp|stdc|gcc)/.test(name)) symlinkSync(file, path.join(dir, 'lib', name))
      else if (/effnet|hwy/.test(name)) cpSync(file, path.join(dir, 'build/Release', name))
  }
  it('are found in its own folders', () => {
    pack()
    expect(unresolved(dir, PLACES)).toEqual([])
  })
  it('are named where only the build or this system has them', () => {
    pack()
    rmSync(path.join(dir, 'build/Release/libhwy.so.1'))
    rmSync(path.join(dir, 'lib/libgomp.so.1'))
    const lines = unresolved(dir, PLACES)
    expect(lines).toContainEqual(expect.stringMatching(/^tests\/program needs libhwy\.so\.1: /))
    expect(lines).toContainEqual(expect.stringMatching(/^tests\/program needs libgomp\.so\.1: \//))
  })
  it('are not looked for in a folder that the loader is not told', () => {
    pack()
    expect(unresolved(dir, ['lib'])).toContainEqual(expect.stringMatching(/^tests\/program needs libhwy\.so\.1: /))
  })
})

describe('a backend for an H200', () => {
  it.each([
    [{ architectures: '', cudnn: false }, 'there is no CUDA backend'],
    [{ architectures: '80;90', cudnn: true }, 'kernels are compiled for 80;90, not for 90a'],
    [{ architectures: '90a', cudnn: false }, "cuDNN's part is not compiled in"],
    [{ architectures: '80;90a;80-ptx', cudnn: true }, ''],
  ])('%j: %j', (built, reason) => expect(lacksForHopper(built)).toBe(reason))
})
