/** What this process may still allocate, so that a plan too large is refused before the system kills the process for it. */
import { readFileSync } from 'node:fs'
import path from 'node:path'

function read(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return undefined
  }
}

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
 * `root` is where /proc and /sys lie.
 */
export function availableMemory(root = '/'): number {
  const at = (...names: string[]): string | undefined => read(path.join(root, ...names))
  const meminfo = at('proc/meminfo') ?? ''
  let least = meminfo === '' ? Infinity : field(meminfo, 'MemAvailable') + field(meminfo, 'SwapFree')
  const groups = at('proc/self/cgroup') ?? ''
  const unified = 'sys/fs/cgroup'
  for (let group = /^0::(\S*)$/m.exec(groups)?.[1] ?? '/'; ; group = path.dirname(group)) {
    const dir = path.join(unified, group)
    const stat = at(dir, 'memory.stat') ?? ''
    least = Math.min(least, leftInGroup(at(dir, 'memory.max'), at(dir, 'memory.current'), stat, ['inactive_file', 'active_file']))
    if (group === '/' || group === '.' || group === '') break
  }
  const v1 = 'sys/fs/cgroup/memory'
  return Math.min(
    least,
    leftInGroup(at(v1, 'memory.limit_in_bytes'), at(v1, 'memory.usage_in_bytes'), at(v1, 'memory.stat') ?? '', [
      'total_inactive_file',
      'total_active_file',
    ]),
  )
}
