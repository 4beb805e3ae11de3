/** Looks at what the engine needs on this machine; every miss comes with its mend. */
import { constants, existsSync, readFileSync } from 'node:fs'
import { access, open, rm, statfs } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import type { CpuInfo, CudaInfo, CudaLibrary } from '../binding.js'
import { EffnetError } from '../errors.js'
import { packageRoot } from '../paths.js'
import { packageVersion } from '../version.js'
import { bundledFiles } from '../weights/bundled.js'
import { defineVerb } from './call.js'
import { describeError } from './errors_ui.js'
import { EXIT } from './exit.js'
import { defineOptions } from './options.js'
import { mebibytes } from './ui.js'

const NODE_MINIMUM: readonly [number, number] = [20, 17]
const NAPI_MINIMUM = 9
const LOW_SPACE = 1024 ** 3
const PROBE_BYTES = 32 * 1024 ** 2

export interface Check {
  name: string
  /** `warn`: works, but something is slower or missing; `fail`: the engine cannot run. */
  status: 'ok' | 'warn' | 'fail'
  value: string
  mend?: string
}

const ok = (name: string, value: string): Check => ({ name, status: 'ok', value })

function checkNode(): Check[] {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  const recent = major > NODE_MINIMUM[0] || (major === NODE_MINIMUM[0] && minor >= NODE_MINIMUM[1])
  const napi = Number(process.versions['napi'] ?? 0)
  return [
    recent
      ? ok('node', process.versions.node)
      : { name: 'node', status: 'fail', value: process.versions.node, mend: `install Node ${NODE_MINIMUM.join('.')} or later` },
    napi >= NAPI_MINIMUM
      ? ok('node-api', String(napi))
      : { name: 'node-api', status: 'fail', value: String(napi), mend: `install Node ${NODE_MINIMUM.join('.')} or later` },
    ok('platform', `${process.platform}-${process.arch}, ${os.type()} ${os.release()}`),
  ]
}

function checkCpu(info: CpuInfo): Check[] {
  const host = os.cpus().length
  const limit = info.cpus < host ? `${info.cpus} of ${host} (affinity or container limit)` : `${info.cpus}`
  const memory = os.totalmem()
  const bounded = info.memoryBytes < memory * 0.999 ? ` of ${mebibytes(memory)} (container limit)` : ''
  return [
    ok('cpu', info.model),
    info.unsupported
      ? {
          name: 'isa',
          status: 'fail',
          value: info.unsupported,
          mend: 'a CPU with AVX2 is needed (Intel from 2013, AMD from 2015)',
        }
      : ok('isa', `${info.isa}; oneDNN ${info.onednnIsa}`),
    info.avx512Bf16
      ? ok('bf16-mixed', info.amxBf16 ? 'AMX' : 'AVX512_BF16')
      : {
          name: 'bf16-mixed',
          status: 'warn',
          value: 'this CPU has neither AVX512_BF16 nor AMX',
          mend: 'use --precision fp32 (the default)',
        },
    ok('cpus', limit),
    info.memoryBytes >= 2 * LOW_SPACE
      ? ok('memory', `${mebibytes(info.memoryBytes)}${bounded}`)
      : {
          name: 'memory',
          status: 'warn',
          value: `${mebibytes(info.memoryBytes)}${bounded}`,
          mend: 'small batches only: --batch-size 8, or raise the memory limit of the container',
        },
  ]
}

const cudaVersion = (v: number): string => `${Math.floor(v / 1000)}.${Math.floor((v % 1000) / 10)}`

/** The CUDA backend runs without any of these. */
export function checkLibrary(library: CudaLibrary): Check {
  if (library.path !== '') return ok(library.name, `${library.version}, ${library.path}`)
  return { name: library.name, status: 'warn', value: `${library.problem}: ${library.without}`, mend: library.mend }
}

/** An installed package has no sources to build from. */
const fromSources = (mend: string): string =>
  existsSync(path.join(packageRoot(), 'native')) ? mend : `in a checkout of effnet-native: ${mend}`

type Gpu = CudaInfo['gpus'][number]

export function checkGpu({ name, computeCapability, memoryBytes, problem }: Gpu, i: number): Check {
  if (problem !== '') {
    const build = fromSources(`npm run setup -- --cuda --cuda-architectures ${Math.round(10 * computeCapability)}`)
    const mend =
      computeCapability < 8
        ? 'use a GPU from 2020 or later: A100, RTX 30, L4, H100 and their successors'
        : `name another GPU (--device cuda:N), or build for this one: ${build}`
    return { name: `cuda:${i}`, status: 'warn', value: `${problem} (for --device cuda only)`, mend }
  }
  const value = `${name}, compute capability ${computeCapability.toFixed(1)}, ${mebibytes(memoryBytes)}; also tf32, fp16-mixed, bf16-mixed`
  return ok(`cuda:${i}`, value)
}

/** NVIDIA's own way to choose and to hide GPUs; the driver counts what is left from 0. */
export function checkVisible(visible: string | undefined, count: number): Check[] {
  if (visible === undefined) return []
  const name = 'CUDA_VISIBLE_DEVICES'
  if (count > 0) return [ok(name, `"${visible}": of all GPUs these, in this order, are cuda:0 to cuda:${count - 1}`)]
  return [
    {
      name,
      status: 'warn',
      value: `"${visible}" hides every GPU`,
      mend: `unset ${name}, or name GPUs as nvidia-smi -L has them`,
    },
  ]
}

/** What is built by npm is built in a checkout. */
const builds = (mend: string): string => (mend.startsWith('npm run ') ? fromSources(mend) : mend)

/** Only whoever asks for `--device cuda` needs it: what is missing, or cannot even be asked, is no failure. */
export async function checkCuda(ask: () => Promise<CudaInfo>): Promise<Check[]> {
  try {
    return cudaChecks(await ask())
  } catch (error) {
    const { code, message, mend } = describeError(error)
    const value = `${code}: ${message} (for --device cuda only)`
    return [{ name: 'cuda', status: 'warn', value, mend: mend ?? fromSources('npm run setup -- --cuda') }]
  }
}

function cudaChecks(info: CudaInfo): Check[] {
  const found: Check[] = []
  if (info.architectures !== '')
    found.push(ok('cuda backend', `${info.library}, kernels for sm_${info.architectures.replaceAll(';', ', sm_')}`))
  if (info.driverVersion > 0) {
    const release = info.driverRelease || 'of an unknown release'
    found.push(ok('cuda driver', `${release}, CUDA ${cudaVersion(info.driverVersion)}, ${info.driverPath}`))
  }
  const libraries = info.libraries.filter((library) => info.driverVersion > 0 || library.path !== '')
  found.push(...libraries.map(checkLibrary))
  if (info.driverVersion > 0) found.push(...checkVisible(process.env['CUDA_VISIBLE_DEVICES'], info.gpus.length))
  if (info.unavailable === null) return [...found, ...info.gpus.map(checkGpu)]
  const [value, ...mend] = info.unavailable.split('. ')
  return [
    ...found,
    {
      name: 'cuda',
      status: 'warn',
      value: `${value} (for --device cuda only)`,
      mend: builds(mend.join('. ') || 'npm run setup -- --cuda'),
    },
  ]
}

async function checkAddon(): Promise<Check[]> {
  const { binding } = await import('../binding.js')
  try {
    const native = binding()
    const v = native.version()
    const cpu = [ok('addon', `${v.addon}, ${v.build}`), ok('oneDNN', v.onednn), ...checkCpu(native.cpuInfo())]
    return [...cpu, ...(await checkCuda(() => native.cudaInfo()))]
  } catch (error) {
    const { code, message, mend } = describeError(error)
    return [{ name: 'addon', status: 'fail', value: `${code}: ${message}`, mend: mend ?? 'npm run setup' }]
  }
}

async function checkSharp(): Promise<Check> {
  try {
    const { default: sharp } = await import('sharp')
    return ok('sharp', `${sharp.versions.sharp ?? 'present'} (PNG, WebP, TIFF, AVIF, GIF)`)
  } catch {
    return { name: 'sharp', status: 'warn', value: 'absent: only JPEG can be read', mend: 'npm install sharp' }
  }
}

function checkPretrained(): Check {
  const files = bundledFiles()
  if (files.length > 0) return ok('weights', files.map((f) => path.basename(f)).join(', '))
  return {
    name: 'weights',
    status: 'warn',
    value: `no pretrained weights in ${path.join(packageRoot(), 'models/pretrained')}`,
    mend: 'check the package out or install it again; predict needs --model and --weights until then',
  }
}

/** Free space of the working folder and the rate at which it takes 32 MiB with an fsync at the end. */
async function checkDisk(folder: string): Promise<Check[]> {
  const { bavail, bsize } = await statfs(folder)
  const free = bavail * bsize
  const space: Check =
    free >= LOW_SPACE
      ? ok('disk space', `${mebibytes(free)} free in ${folder}`)
      : {
          name: 'disk space',
          status: 'warn',
          value: `${mebibytes(free)} free in ${folder}`,
          mend: 'a B0 run needs about 150 MB a checkpoint: free some space, or train with --out on another disk',
        }
  if (free < 2 * PROBE_BYTES) return [space]
  const probe = path.join(folder, `.effnet-doctor-${process.pid}`)
  try {
    await access(folder, constants.W_OK)
    const block = Buffer.alloc(1024 ** 2, 0x5a)
    const file = await open(probe, 'wx')
    const start = performance.now()
    try {
      for (let i = 0; i < PROBE_BYTES; i += block.length) await file.write(block)
      await file.sync()
    } finally {
      await file.close()
    }
    const rate = PROBE_BYTES / ((performance.now() - start) / 1e3)
    const value = `${mebibytes(rate)}/s written and synced`
    if (rate > 20 * 1024 ** 2) return [space, ok('disk speed', value)]
    return [space, { name: 'disk speed', status: 'warn', value, mend: 'checkpoints will be slow: --out on a faster disk' }]
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === undefined) throw error
    return [
      space,
      {
        name: 'disk speed',
        status: 'warn',
        value: (error as Error).message,
        mend: 'run where you can write, or give --out to train',
      },
    ]
  } finally {
    await rm(probe, { force: true })
  }
}

function checkContainer(): Check {
  const inside =
    existsSync('/.dockerenv') ||
    existsSync('/run/.containerenv') ||
    (existsSync('/proc/1/cgroup') && /docker|kubepods|containerd|lxc/.test(readFileSync('/proc/1/cgroup', 'utf8')))
  return ok('container', inside ? 'yes' : 'none seen')
}

const MARK = { ok: 'ok  ', warn: 'warn', fail: 'FAIL' } as const

export const verb = defineVerb(
  {
    name: 'doctor',
    summary: 'check this machine and tell the mend of what is missing',
    examples: ['effnet doctor', 'effnet doctor --json'],
    options: defineOptions({}),
  },
  async ({ io, ui }) => {
    const { checkVariables } = await import('./variables.js')
    const checks: Check[] = [
      ok('effnet', packageVersion()),
      ...checkNode(),
      ...(await checkAddon()),
      await checkSharp(),
      checkPretrained(),
      checkContainer(),
      ...checkVariables(io.env),
      ...(await checkDisk(process.cwd())),
    ]
    const failed = checks.filter((c) => c.status === 'fail')
    const width = Math.max(...checks.map((c) => c.name.length))
    for (const check of checks) {
      const colour = { ok: ui.paint.green, warn: ui.paint.yellow, fail: ui.paint.red }[check.status]
      ui.line(`${colour(MARK[check.status])}  ${check.name.padEnd(width)}  ${check.value}`)
      if (check.mend) ui.line(`      ${' '.repeat(width)}  Mend: ${check.mend}`)
    }
    ui.object({ ok: failed.length === 0, checks })
    if (failed.length === 0) return EXIT.ok
    throw new EffnetError('EFF_BACKEND_MISSING', `the engine cannot run here: ${failed.map((f) => f.name).join(', ')}`, {
      hint: failed[0]!.mend ?? 'npm run setup',
    })
  },
)
