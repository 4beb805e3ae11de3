/** What the archive of `gpu-check.sh --pack` must have, since the machine that it is for may have little else. */
import { closeSync, openSync, readdirSync, readSync, realpathSync } from 'node:fs'
import path from 'node:path'
import { probe } from './run.mjs'

/** Those of glibc, and what the kernel maps; C++'s and OpenMP's are packed. */
const OF_EVERY_SYSTEM = /^(linux-vdso|ld-linux-x86-64|libc|libm|libdl|librt|libpthread|libresolv)\.so\b/

function isElf(file) {
  const magic = Buffer.alloc(4)
  const handle = openSync(file, 'r')
  readSync(handle, magic, 0, 4, 0)
  closeSync(handle)
  return magic.toString('latin1') === '\x7fELF'
}

/** Programs and shared libraries below a folder. */
const binariesOf = (folder) =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name))
    .filter(isElf)

/**
 * Which libraries programs of `folder` need that neither it nor glibc has, a line each: what the loader finds here, by a run path of the
 * build or of this system, is not there. `places`: folders of it that the loader is told.
 */
export function unresolved(folder, places) {
  const top = realpathSync(folder)
  const env = { ...process.env, LD_LIBRARY_PATH: places.map((name) => path.join(top, name)).join(':') }
  const lines = []
  for (const file of binariesOf(top)) {
    const { stdout } = probe('ldd', [file], { env })
    for (const [, name, found] of stdout.matchAll(/^\s*(\S+) => (.+?)(?: \(0x\w+\))?$/gm))
      if (!OF_EVERY_SYSTEM.test(name) && !found.startsWith(`${top}/`))
        lines.push(`${path.relative(top, file)} needs ${name}: ${found}`)
  }
  return lines
}

/** Why a backend is of no use to an H200; empty: it is of use. */
export function lacksForHopper({ architectures, cudnn }) {
  if (architectures === '') return 'there is no CUDA backend'
  if (!architectures.split(';').includes('90a')) return `kernels are compiled for ${architectures}, not for 90a`
  return cudnn ? '' : "cuDNN's part is not compiled in"
}
