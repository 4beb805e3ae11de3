/** What the build needs from the system, how to find out whether it is there, and the Debian package that brings it. */
import { existsSync } from 'node:fs'
import { probe, run, SetupError, say } from './run.mjs'

const atLeast = (text, major, minor = 0) => {
  const m = /(\d+)(?:\.(\d+))?/.exec(text)
  return m !== null && (Number(m[1]) > major || (Number(m[1]) === major && Number(m[2] ?? 0) >= minor))
}
const runs = (command, args = ['--version']) => probe(command, args).status === 0
const compiler = () => process.env.CXX ?? 'c++'
const hasHeaders = (...headers) => {
  const input = headers.map((h) => `#include <${h}>\n`).join('')
  return probe(compiler(), ['-E', '-x', 'c++', '-std=c++20', '-'], { input, maxBuffer: 1 << 26 }).status === 0
}
/** The compiler answers with the bare name when it does not know the file. */
const hasLibrary = (file) =>
  probe(compiler(), [`-print-file-name=${file}`])
    .stdout.trim()
    .includes('/')

const REQUIREMENTS = [
  {
    what: 'a C++20 compiler (g++ 12 or newer)',
    packages: ['g++'],
    found: () => atLeast(probe(compiler(), ['-dumpfullversion', '-dumpversion']).stdout, 12),
  },
  { what: 'CMake 3.25 or newer', packages: ['cmake'], found: () => atLeast(probe('cmake', ['--version']).stdout, 3, 25) },
  { what: 'ninja or make', packages: ['ninja-build'], found: () => runs('ninja') || runs('make') },
  { what: 'patchelf', packages: ['patchelf'], found: () => runs('patchelf') },
  { what: 'strip', packages: ['binutils'], found: () => runs('strip') },
  {
    what: 'Highway headers and library',
    packages: ['libhwy-dev'],
    found: () => hasHeaders('hwy/highway.h') && hasLibrary('libhwy.so'),
  },
  {
    what: 'libjpeg-turbo headers and libjpeg.a',
    packages: ['libjpeg62-turbo-dev'],
    found: () => hasHeaders('cstdio', 'jpeglib.h') && hasLibrary('libjpeg.a'),
  },
  {
    what: 'OpenSSL headers and libcrypto.a (SHA-256)',
    packages: ['libssl-dev'],
    found: () => hasHeaders('openssl/sha.h') && hasLibrary('libcrypto.a'),
  },
]
/** Only the download of the oneDNN wheels uses it. */
const PIP = {
  what: 'python3 with pip (downloads oneDNN)',
  packages: ['python3', 'python3-pip'],
  found: () => runs('python3', ['-m', 'pip', '--version']),
}
const TEST_REQUIREMENTS = [
  { what: 'GoogleTest', packages: ['libgtest-dev'], found: () => hasHeaders('gtest/gtest.h') && hasLibrary('libgtest.a') },
  { what: 'clang-format', packages: ['clang-format'], found: () => runs('clang-format') },
]

/** Installs what is missing where it may, else throws with the one line that does. */
export async function ensureSystem({ pip, tests }) {
  const wanted = [...REQUIREMENTS, ...(pip ? [PIP] : []), ...(tests ? TEST_REQUIREMENTS : [])]
  const missing = wanted.filter((r) => !r.found())
  if (missing.length === 0) {
    say('system', `${wanted.length} of ${wanted.length} build requirements found`)
    return
  }
  const packages = missing.flatMap((r) => r.packages)
  say('system', `missing: ${missing.map((r) => r.what).join(', ')}`)
  const line = `apt-get install -y --no-install-recommends ${packages.join(' ')}`
  if (!existsSync('/usr/bin/apt-get')) {
    throw new SetupError(
      'this system has no apt-get; the build needs what is listed above',
      `install what Debian calls: ${packages.join(' ')}`,
      69,
    )
  }
  const asRoot = process.getuid?.() === 0
  if (!asRoot && probe('sudo', ['-n', 'true']).status !== 0) {
    throw new SetupError('not root, and sudo asks for a password', `sudo ${line}`, 69)
  }
  const mend = `${asRoot ? '' : 'sudo '}apt-get update && ${asRoot ? '' : 'sudo '}${line}`
  const aptGet = (topic, args) => {
    const command = [
      'env',
      'DEBIAN_FRONTEND=noninteractive',
      'apt-get',
      '-q',
      '-o',
      'Acquire::Retries=3',
      '-o',
      'DPkg::Lock::Timeout=120',
      ...args,
    ]
    if (!asRoot) command.unshift('sudo', '-n')
    return run(topic, command[0], command.slice(1), { mend, exitCode: 69 })
  }
  await aptGet('apt', ['update'])
  await aptGet('apt', ['install', '-y', '--no-install-recommends', ...packages])
  const still = missing.filter((r) => !r.found())
  if (still.length > 0) {
    throw new SetupError(
      `installed ${packages.join(' ')}, but still missing or too old: ${still.map((r) => r.what).join(', ')}`,
      'use Debian 12 or newer, or put these on the PATH',
      69,
    )
  }
  say('system', `installed ${packages.join(' ')}`)
}
