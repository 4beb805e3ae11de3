/** The stand-ins of NVIDIA's driver and libraries (native/cuda/fake), whose folder EFFNET_LIB_DIR has to name. */
import { existsSync } from 'node:fs'
import path from 'node:path'
import { describe, it } from 'vitest'
import { packageRoot } from '../../ts/paths.js'

export interface StandIn {
  folder: string
  /** The first file that is not built. */
  missing: string | undefined
}

function standIn(folder: string, libraries: readonly string[]): StandIn {
  const at = path.join(packageRoot(), 'build', folder)
  const files = [...libraries.map((name) => path.join(at, name)), path.join(packageRoot(), 'build/Release/effnet_cuda.so')]
  return { folder: at, missing: files.find((file) => !existsSync(file)) }
}

/** A driver, and no library beside it. */
export const FAKE_DRIVER = standIn('fake_cuda', ['libcuda.so.1'])
/** A driver with these libraries beside it. */
export const fakeLibraries = (...names: string[]): StandIn => standIn('fake_nvidia', ['libcuda.so.1', ...names])

/** Why a test that needs it does not run, for its title; empty where it does. */
export const skipReason = ({ missing }: StandIn): string =>
  missing ? ` (no ${path.relative(packageRoot(), missing)}: npm run setup -- --test)` : ''

/** `describe` where it is built; elsewhere skipped, with the reason in the title. */
export function describeWith(on: StandIn, title: string, tests: () => void): void {
  describe.skipIf(on.missing !== undefined)(`${title}${skipReason(on)}`, tests)
}

/** Likewise a single test. */
export function itWith(on: StandIn, title: string, timeout: number, test: () => Promise<void>): void {
  it.skipIf(on.missing !== undefined)(`${title}${skipReason(on)}`, { timeout }, test)
}
