/** What the environment says to this package, as a user who looks for a slip in it needs to hear it. */
import { accessSync, constants, existsSync, statSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { EffnetError } from '../errors.js'
import { nearest } from '../nearest.js'
import { CUDA_VARIABLES, cudaVariable } from '../runtime/cuda_variables.js'
import { deviceName } from '../runtime/device.js'
import { LIMIT_HINT, memoryBytes } from '../runtime/memory_limit.js'
import { cacheFolder } from '../runtime/tuning.js'
import type { Check } from './doctor.js'
import type { Io } from './io.js'
import type { OptionDef } from './options.js'
import { validate } from './schema.js'
import { TRAIN } from './train_options.js'
import { userWords } from './user_words.js'

type Look = (value: string, name: string) => void

const wrong = (name: string, value: string, what: string, hint: string): EffnetError =>
  new EffnetError('EFF_CONFIG_VALUE', `${name}=${value}: ${what}`, { hint })

/** Throws what a command would throw that reads it. */
const LOOKS: Readonly<Record<string, Look>> = {
  ...Object.fromEntries(
    Object.entries(TRAIN as Readonly<Record<string, OptionDef>>).flatMap(([key, def]) =>
      (def.env ?? []).map((name) => [
        name,
        (value: string) => void validate({ [key]: def }, new Map([[key, { value, source: name }]])),
      ]),
    ),
  ),
  EFFNET_DEVICE: (value) => void deviceName(value),
  EFFNET_BACKEND: (value) => void deviceName(value),
  EFFNET_MEMORY_LIMIT: (value, name) => {
    try {
      memoryBytes(value, os.totalmem())
    } catch (cause) {
      throw wrong(name, value, (cause as Error).message.replace(/^memoryLimit = .*?: /, ''), LIMIT_HINT)
    }
  },
  ...Object.fromEntries(CUDA_VARIABLES.map((name) => [name, () => void cudaVariable(name)])),
  EFFNET_LIB_DIR: (value, name) => {
    if (!existsSync(value) || !statSync(value).isDirectory())
      throw wrong(
        name,
        value,
        'there is no such folder',
        'name the folder that has libcudnn.so.9 or libnvjpeg.so.13, or unset it',
      )
  },
  EFFNET_CACHE_DIR: (value, name) => {
    let at = cacheFolder({ [name]: value })
    while (!existsSync(at) && path.dirname(at) !== at) at = path.dirname(at)
    try {
      if (!statSync(at).isDirectory()) throw new Error(`${at} is a file`)
      accessSync(at, constants.W_OK)
    } catch (cause) {
      throw wrong(
        name,
        value,
        `nothing can be kept there: ${(cause as Error).message}`,
        'name a folder that this user may write to',
      )
    }
  },
  EFFNET_FAULT: (value, name) => {
    throw wrong(name, value, 'for tests: it makes this process fail', 'unset it')
  },
  // What is wrong with these, the checks of the addon and of the CPU say.
  EFFNET_ADDON: () => undefined,
  EFFNET_MAX_ISA: () => undefined,
}

/** Of a checkout's tests and scripts, which commands of the package do not read. */
const OF_TESTS: ReadonlySet<string> = new Set([
  'EFFNET_TEST_DATA',
  'EFFNET_FAULT_LOG',
  'EFFNET_REAL_SIZES',
  'EFFNET_REHEARSE',
  'EFFNET_STAGE_END',
  'EFFNET_GPU_CHECK_LOGS',
  'EFFNET_GPU_CHECK_SECONDS',
  'EFFNET_GPU_CHECK_DATE',
  'EFFNET_GPU_CHECK_VERSION',
  'EFFNET_SHAPE_SECONDS',
  'EFFNET_CURVES_DEVICE',
  'EFFNET_CURVES_STEPS',
  'EFFNET_BENCH_MODE',
  'EFFNET_CUDA_SHAPES',
  'EFFNET_CUDNN_ROWS',
  'EFFNET_CUDNN_WRITE',
  'EFFNET_KERNELS',
  'EFFNET_KERNELS_RUN',
  'EFFNET_RUNS_OF_A_FORM',
])

/** Values that a command would refuse, and names that none reads. */
export function checkVariables(env: Io['env']): Check[] {
  const fine: string[] = []
  const bad: Check[] = []
  for (const [name, value] of Object.entries(env)) {
    if (!name.startsWith('EFFNET_') || OF_TESTS.has(name) || value === undefined || value === '') continue
    const look = Object.hasOwn(LOOKS, name) ? LOOKS[name] : undefined
    if (!look) {
      const [meant] = nearest(name, Object.keys(LOOKS), 1)
      const mend = meant ? `did you mean ${meant}` : 'unset it; docs/cli.md has those that are read'
      bad.push({ name, status: 'warn', value: 'nothing reads it', mend })
      continue
    }
    try {
      look(value, name)
      fine.push(`${name}=${value}`)
    } catch (error) {
      if (!(error instanceof EffnetError)) throw error
      bad.push({ name, status: 'warn', value: userWords(error.message), mend: userWords(error.hint ?? `unset ${name}`) })
    }
  }
  return [...(fine.length > 0 ? [{ name: 'variables', status: 'ok' as const, value: fine.join(' ') }] : []), ...bad]
}
