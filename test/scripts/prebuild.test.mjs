/** What `npm pack` takes: a CUDA backend for every GPU of a release, or one that says for which it is. */
import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { builtCuda, lacksForRelease, RELEASE_ARCHITECTURES, RELEASE_SETUP } from '../../scripts/lib/release.mjs'

describe('a backend for a release', () => {
  it('has kernels for every GPU, and cuDNN', () => {
    expect(lacksForRelease({ architectures: RELEASE_ARCHITECTURES, cudnn: true })).toBe('')
    expect(lacksForRelease({ architectures: '80-ptx;120;100;90a;89;86;80', cudnn: true })).toBe('')
  })
  it.each([
    ['', true, 'there is no CUDA backend'],
    ['90a', true, 'kernels are compiled for 90a, a release has them for 80;86;89;90a;100;120;80-ptx'],
    ['80;86;89;90a;100;120', true, 'kernels are compiled for 80;86;89;90a;100;120, a release'],
    [RELEASE_ARCHITECTURES, false, "cuDNN's part is not compiled in"],
  ])('is not one with kernels for "%s", cuDNN: %s', (architectures, cudnn, why) => {
    expect(lacksForRelease({ architectures, cudnn })).toContain(why)
  })
})

const release = path.resolve('build/Release')
const cache = path.resolve('build/CMakeCache.txt')
const there = existsSync(path.join(release, 'effnet_cuda.so'))

describe.skipIf(!there)(`the pack${there ? '' : ' (no CUDA backend: npm run setup -- --cuda)'}`, () => {
  let dir
  beforeEach(() => {
    dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-prebuild-'))
    cpSync('scripts', path.join(dir, 'scripts'), { recursive: true })
    writeFileSync(
      path.join(dir, 'scripts/lib/build.mjs'),
      'export const nativeCurrent = () => true\nexport const tsCurrent = () => true\n',
    )
    mkdirSync(path.join(dir, 'build'))
    symlinkSync(release, path.join(dir, 'build/Release'))
    const licences = path.join(dir, '.cache/onednn-3.2.0')
    mkdirSync(licences, { recursive: true })
    for (const name of ['LICENSE', 'THIRD-PARTY-PROGRAMS']) writeFileSync(path.join(licences, name), name)
  })
  afterEach(() => rmSync(dir, { recursive: true, force: true }))
  const pack = (...args) => {
    const { status, stdout, stderr } = spawnSync(process.execPath, ['scripts/prebuild.mjs', ...args], {
      cwd: dir,
      encoding: 'utf8',
    })
    return { status, stdout, stderr }
  }
  const packed = () => path.join(dir, 'prebuilds', `${process.platform}-${process.arch}`)

  it('knows what the build was configured for from the backend itself', () => {
    const configured = readFileSync(cache, 'utf8')
    const { architectures, cudnn } = builtCuda()
    expect(configured).toContain(`EFFNET_CUDA_ARCHITECTURES:STRING=${architectures}\n`)
    expect(cudnn).toBe(!/^(CUDNN|CUDNN_FRONTEND|NVRTC)_INCLUDE.*NOTFOUND/m.test(configured))
  })

  it.skipIf(there && lacksForRelease(builtCuda()) === '')(
    'is refused with the mend, and leaves nothing of an earlier one',
    () => {
      mkdirSync(packed(), { recursive: true })
      const { status, stderr } = pack()
      expect(status).toBe(1)
      expect(stderr).toContain(`this build is for some machines only: ${lacksForRelease(builtCuda())}`)
      expect(stderr).toContain(`Mend: ${RELEASE_SETUP}; or `)
      expect(existsSync(packed())).toBe(false)
    },
  )

  it('says what it is for where it is wanted as it is', () => {
    const { status, stderr } = pack('--for-this-machine')
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    const built = builtCuda()
    const lacks = lacksForRelease(built)
    expect(JSON.parse(readFileSync(path.join(packed(), 'build.json'), 'utf8'))).toEqual({
      ...built,
      release: lacks === '',
      lacks,
    })
    for (const name of ['effnet.node', 'effnet_cuda.so', 'oneDNN-LICENSE'])
      expect(existsSync(path.join(packed(), name))).toBe(true)
  })

  it('refuses other options', () => {
    expect(pack('--all')).toMatchObject({ status: 64, stderr: expect.stringContaining('--for-this-machine') })
  })
})
