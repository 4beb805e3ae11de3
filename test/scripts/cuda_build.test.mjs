/** How a build comes to its CUDA compiler, libraries and architectures: in a checkout whose CMake only tells what it was asked. */
import { spawnSync } from 'node:child_process'
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'

let dir
beforeEach(() => {
  dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-cuda-build-'))
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

function write(name, text) {
  mkdirSync(path.dirname(path.join(dir, name)), { recursive: true })
  writeFileSync(path.join(dir, name), text)
}

describe('the build', () => {
  beforeEach(() => {
    cpSync('scripts', path.join(dir, 'scripts'), { recursive: true })
    for (const name of ['package.json', 'package-lock.json']) cpSync(name, path.join(dir, name))
    write('node_modules/cmake-js/package.json', '{ "name": "cmake-js" }')
    write(
      'node_modules/cmake-js/bin/cmake-js',
      `const { appendFileSync, mkdirSync, writeFileSync } = require('node:fs')
appendFileSync('asked', process.argv.slice(2).join(' ') + '\\n')
mkdirSync('build/Release', { recursive: true })
writeFileSync('build/Release/effnet.node', '')`,
    )
  })
  const node = (...args) => spawnSync(process.execPath, args, { cwd: dir, encoding: 'utf8' })
  /** What CMake is asked for; nothing where the build is current. */
  const build = () => {
    rmSync(path.join(dir, 'asked'), { force: true })
    const { status, stderr } = node(
      '--input-type=module',
      '-e',
      `import { buildNative, nativeCurrent } from './scripts/lib/build.mjs'
if (!nativeCurrent(false)) await buildNative({ tests: false, jobs: 1 })`,
    )
    expect(stderr).toBe('')
    expect(status).toBe(0)
    const asked = path.join(dir, 'asked')
    return existsSync(asked) ? readFileSync(asked, 'utf8').trimEnd().split('\n') : []
  }

  it('is made again for other architectures, which are kept', () => {
    expect(build()).toHaveLength(2)
    expect(build()).toEqual([])
    const kept = `import { keepCudaArchitectures } from './scripts/lib/cuda.mjs'; keepCudaArchitectures('80;90a;80-ptx')`
    expect(node('--input-type=module', '-e', kept).status).toBe(0)
    const [configured, built] = build()
    expect(configured).toMatch(/^configure .*--CDEFFNET_CUDA_ARCHITECTURES=80;90a;80-ptx/)
    expect(built).toMatch(/^build /)
    expect(build()).toEqual([])
    write('CMakeLists.txt', '# changed')
    expect(build()[0]).toContain('=80;90a;80-ptx')
  })

  it('is made again where the backend was built and is gone', () => {
    build()
    write('build/CMakeCache.txt', `CMAKE_HOME_DIRECTORY:INTERNAL=${dir}\nNVCC:FILEPATH=/usr/local/cuda/bin/nvcc\n`)
    expect(build()).toHaveLength(2)
    write('build/Release/effnet_cuda.so', '')
    expect(build()).toEqual([])
  })

  it.each(['', 'x', '80,86', '75', '80;;86', '90a-ptx'])('refuses the architectures "%s"', (list) => {
    const { status, stderr } = node('scripts/setup.mjs', '--cuda-architectures', list)
    expect(stderr).toMatch(/--cuda-architectures .*expected such as 80, 90a/)
    expect(status).toBe(64)
  })
})

describe('the toolkit that CMake finds', () => {
  const cmake = (version) => {
    cpSync('native/cuda/toolkit.cmake', path.join(dir, 'native/cuda/toolkit.cmake'), { recursive: true })
    write('toolkit/bin/nvcc', `#!/bin/sh\necho "Cuda compilation tools, release ${version}, V${version}.88"\n`)
    chmodSync(path.join(dir, 'toolkit/bin/nvcc'), 0o755)
    write('toolkit/include/cuda.h', '')
    write('show.cmake', `include(native/cuda/toolkit.cmake)\nmessage(STATUS "NVCC=\${NVCC} CUDA_INCLUDE=\${CUDA_INCLUDE}")\n`)
    const env = { ...process.env, CUDA_HOME: path.join(dir, 'toolkit') }
    return spawnSync('cmake', ['-P', 'show.cmake'], { cwd: dir, env, encoding: 'utf8' }).stdout
  }

  it('has its own headers', () => {
    expect(cmake('13.1')).toContain(`NVCC=${dir}/toolkit/bin/nvcc CUDA_INCLUDE=${dir}/toolkit/include\n`)
  })

  it('is left out where it is too old, and says so', () => {
    const told = cmake('12.8')
    expect(told).toContain('CUDA backend: left out')
    expect(told).toContain('CUDA "12.8", 13.0 or later is needed')
    expect(told).toContain('NVCC= ')
  })
})
