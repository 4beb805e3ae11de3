/** What this process may still allocate, so that a plan too large is refused before the system kills the process for it; and limits. */
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { byteText } from '../byte_text.js'
import { EffnetError } from '../errors.js'

const read = (file: string): Promise<string | undefined> => readFile(file, 'utf8').catch(() => undefined)

/** Bytes of a line such as `MemAvailable: 123 kB` or `inactive_file 4096`. */
function field(text: string, name: string): number {
  const found = new RegExp(`^${name}:?\\s+(\\d+)( kB)?`, 'm').exec(text)
  return found ? Number(found[1]) * (found[2] ? 1024 : 1) : 0
}

/** Bytes left below the limit of a group; what the page cache holds is given back when it is needed. */
function leftInGroup(limitText: string | undefined, usedText: string | undefined, stat: string, cache: string[]): number {
  const limit = Number(limitText)
  const used = Number(usedText)
  if (limitText === undefined || usedText === undefined || !Number.isFinite(limit) || !Number.isFinite(used)) return Infinity
  const reclaimable = cache.reduce((sum, name) => sum + field(stat, name), 0)
  return Math.max(0, limit - Math.max(0, used - reclaimable))
}

/**
 * Bytes: the least of what the machine has free (MemAvailable and swap) and what each control group above this process leaves.
 * `root` is where /proc and /sys lie. Some of these files take the kernel milliseconds to write, so nobody waits for them here.
 */
export async function availableMemory(root = '/'): Promise<number> {
  const at = (...names: string[]) => read(path.join(root, ...names))
  const meminfo = (await at('proc/meminfo')) ?? ''
  let least = meminfo === '' ? Infinity : field(meminfo, 'MemAvailable') + field(meminfo, 'SwapFree')
  const groups = (await at('proc/self/cgroup')) ?? ''
  const unified = 'sys/fs/cgroup'
  for (let group = /^0::(\S*)$/m.exec(groups)?.[1] ?? '/'; ; group = path.dirname(group)) {
    const dir = path.join(unified, group)
    const [max, current, stat = ''] = await Promise.all(['max', 'current', 'stat'].map((name) => at(dir, `memory.${name}`)))
    least = Math.min(least, leftInGroup(max, current, stat, ['inactive_file', 'active_file']))
    if (group === '/' || group === '.' || group === '') break
  }
  const v1 = 'sys/fs/cgroup/memory'
  const names = ['limit_in_bytes', 'usage_in_bytes', 'stat']
  const [limit, used, stat = ''] = await Promise.all(names.map((name) => at(v1, `memory.${name}`)))
  return Math.min(least, leftInGroup(limit, used, stat, ['total_inactive_file', 'total_active_file']))
}

const UNITS: Readonly<Record<string, number>> = { mb: 1e6, gb: 1e9, m: 2 ** 20, mib: 2 ** 20, g: 2 ** 30, gib: 2 ** 30 }
/** Less is a share or a unit gone wrong. */
const LEAST = 2 ** 20

export const LIMIT_HINT = "a share of the device's memory (0.5, '50%') or an amount of a MiB or more ('8GiB', '500MB', bytes)"

/** Of a limit as users write it: its bytes, or what is wrong with it. `total` infinite: of a machine that is not known yet. */
function limitOf(given: number | string, total: number): { bytes: number } | { problem: string } {
  const text = String(given).trim()
  const [, number, unit = ''] = /^(\d*\.?\d+(?:e\d+)?)\s*(\w*|%)$/.exec(text) ?? []
  const amount = Number(number)
  const share = unit === '%' ? amount / 100 : unit === '' && amount <= 1 ? amount : undefined
  if (share !== undefined && share > 1)
    return { problem: `more than ${Number.isFinite(total) ? `the ${byteText(total)} that there are` : 'all there is'}` }
  if (share !== undefined && share > 0 && total === Number.POSITIVE_INFINITY) return { bytes: total }
  const bytes = Math.floor(
    share === undefined
      ? amount * (unit === '' ? 1 : (UNITS[unit.toLowerCase()] ?? Number.NaN))
      : share === 0
        ? 0
        : share * total,
  )
  if (bytes >= 0 && bytes < LEAST) {
    const of = share === undefined || !Number.isFinite(total) ? '' : `of ${byteText(total)} `
    return { problem: `${of}that is ${bytes} byte${bytes === 1 ? '' : 's'}, and ${LEAST} (${byteText(LEAST)}) are the least` }
  }
  return share !== undefined || Number.isSafeInteger(bytes) ? { bytes } : { problem: 'no such amount' }
}

/** What is wrong with a limit on any machine; undefined where nothing is. */
export function limitProblem(given: string): string | undefined {
  const limit = limitOf(given, Number.POSITIVE_INFINITY)
  return 'problem' in limit ? limit.problem : undefined
}

/**
 * Bytes of a limit as users write it: a share of the machine's memory (0.5, '50%') or an amount (2e9, '2GB', '1.5GiB' or '1.5G').
 * @throws EFF_CONFIG_VALUE
 */
export function memoryBytes(given: number | string, total: number): number {
  const limit = limitOf(given, total)
  if ('bytes' in limit) return limit.bytes
  throw new EffnetError('EFF_CONFIG_VALUE', `memoryLimit = ${given}: ${limit.problem}`, { hint: LIMIT_HINT })
}
