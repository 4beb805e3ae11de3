/** What the figures were measured on. */
import { readFileSync } from 'node:fs'
import os from 'node:os'
import { probe } from '../../scripts/lib/run.mjs'

export function machine() {
  const info = readFileSync('/proc/cpuinfo', 'utf8')
  const field = (name) => new RegExp(`^${name}\\s*:\\s*(.*)$`, 'm').exec(info)?.[1] ?? 'unknown'
  const flags = new Set(field('flags').split(' '))
  return {
    cpu: field('model name'),
    family: `family ${field('cpu family')}, model ${field('model')}`,
    isa: ['avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'amx_bf16'].filter((f) => flags.has(f)),
    amx: flags.has('amx_bf16'),
    cpus: os.availableParallelism(),
    memoryGiB: Math.round(os.totalmem() / 2 ** 30),
    kernel: os.release(),
    node: process.versions.node,
    load: os.loadavg()[0],
  }
}

export const commit = () => {
  const head = probe('git', ['rev-parse', '--short', 'HEAD']).stdout.trim() || 'unknown'
  const changed = probe('git', ['status', '--porcelain', '--untracked-files=no']).stdout.trim()
  return changed ? `${head} with changes` : head
}
