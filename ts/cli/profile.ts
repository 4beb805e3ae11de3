/** `effnet bench --profile`: every op of a plan beside the least time this machine could take for it. */
import type { Peaks } from '../binding.js'
import type { KernelRow } from './bench.js'
import type { Ui } from './ui.js'

export interface ProfiledOp extends KernelRow {
  /** max(FLOPs / peak, bytes / bandwidth) in ms. */
  floorMs: number
}

export interface OpKind {
  op: string
  count: number
  ms: number
  floorMs: number
}

/** Ops that run the same kernel. */
export type KernelGroup = Omit<ProfiledOp, 'shapes'> & { count: number }

export interface Profile {
  peaks: Peaks
  /** By ms - floorMs, the largest first. */
  ops: ProfiledOp[]
  /** The same by kind of op. */
  kinds: OpKind[]
  /** The same by kernel, the slowest first. */
  kernels: KernelGroup[]
}

const loss = (row: { ms: number; floorMs: number }): number => row.ms - row.floorMs

/** Only dense convolutions multiply in bf16; everything else computes in FP32, whatever it stores. */
const multipliesBf16 = ({ op, shapes }: KernelRow): boolean => /^conv2d/.test(op) && shapes.includes('bf16[')

/** A peak that was not measured is no bound: on a GPU the floor is that of the bytes alone. */
const msAt = (amount: number, perSecond: number): number => (perSecond > 0 ? (1e3 * amount) / perSecond : 0)

/** Of ops that run the same kernel, the slowest first. */
export function groupKernels(rows: readonly (KernelRow & Partial<ProfiledOp>)[]): KernelGroup[] {
  const groups = new Map<string, KernelGroup>()
  for (const { op, kernel, ms, bytes, flops, floorMs = 0 } of rows) {
    const key = `${op} ${kernel}`
    const group = groups.get(key) ?? { op, kernel, ms: 0, bytes: 0, flops: 0, floorMs: 0, count: 0 }
    group.ms += ms
    group.bytes += bytes
    group.flops += flops
    group.floorMs += floorMs
    group.count++
    groups.set(key, group)
  }
  return [...groups.values()].sort((a, b) => b.ms - a.ms)
}

export function profileOf(rows: readonly KernelRow[], peaks: Peaks): Profile {
  const ops = rows
    .map((row) => {
      const peak = multipliesBf16(row) && peaks.bf16Flops > 0 ? peaks.bf16Flops : peaks.fp32Flops
      return { ...row, floorMs: Math.max(msAt(row.flops, peak), msAt(row.bytes, peaks.bytes)) }
    })
    .sort((a, b) => loss(b) - loss(a))
  const kinds = new Map<string, OpKind>()
  for (const { op, ms, floorMs } of ops) {
    const kind = kinds.get(op) ?? { op, count: 0, ms: 0, floorMs: 0 }
    kinds.set(op, { op, count: kind.count + 1, ms: kind.ms + ms, floorMs: kind.floorMs + floorMs })
  }
  return { peaks, ops, kinds: [...kinds.values()].sort((a, b) => loss(b) - loss(a)), kernels: groupKernels(ops) }
}

/** What `--json` has of a profile. */
export const profileObject = ({ peaks, ops }: Profile) => ({
  peaks: { fp32_flops: peaks.fp32Flops, bf16_flops: peaks.bf16Flops, bytes_per_s: peaks.bytes },
  ops: ops.map(({ floorMs, name, op, kernel, shapes, ms, bytes, flops, place, life }) => ({
    name,
    op,
    kernel,
    shapes,
    place,
    life,
    ms,
    bytes,
    flops,
    floor_ms: floorMs,
  })),
})

const percent = (part: number, whole: number): string => (whole > 0 ? ((100 * part) / whole).toFixed(1) : '-')
const giga = (amount: number, ms: number): string => (amount > 0 && ms > 0 ? (amount / ms / 1e6).toFixed(1) : '-')

/**
 * Shares above 100 % are possible: operands that were still in a cache cost less than the memory's bandwidth says, and Winograd's
 * convolutions multiply less than the direct ones whose FLOPs they report.
 */
export function profileTables(ui: Pick<Ui, 'line' | 'table'>, { peaks, ops, kinds, kernels }: Profile): void {
  const right = (title: string) => ({ title, align: 'right' as const })
  const total = kinds.reduce((sum, k) => sum + k.ms, 0)
  const floor = kinds.reduce((sum, k) => sum + k.floorMs, 0)
  const rates = [
    ...(peaks.fp32Flops > 0 ? [`fp32 ${(peaks.fp32Flops / 1e9).toFixed(0)} GF/s`] : []),
    ...(peaks.bf16Flops > 0 ? [`bf16 ${(peaks.bf16Flops / 1e9).toFixed(0)} GF/s`] : []),
    `memory ${(peaks.bytes / 1e9).toFixed(1)} GB/s`,
  ]
  ui.line()
  ui.line(`peak   ${rates.join(' · ')}, measured${peaks.fp32Flops > 0 ? '' : ' by copies: the floor is that of the bytes'}`)
  ui.line(`floor  ${floor.toFixed(2)} ms of ${total.toFixed(2)} ms in ops: ${percent(floor, total)} %`)
  ui.line()
  ui.table(
    [{ title: 'op' }, right('n'), right('ms'), right('%'), right('floor ms'), right('floor %'), right('loss ms')],
    kinds.map((k) => [
      k.op,
      String(k.count),
      k.ms.toFixed(3),
      percent(k.ms, total),
      k.floorMs.toFixed(3),
      percent(k.floorMs, k.ms),
      loss(k).toFixed(3),
    ]),
  )
  ui.line()
  ui.table(
    [{ title: 'kernel' }, right('n'), right('ms'), right('%'), right('MB'), right('GB/s'), right('floor %')],
    kernels.map((k) => [
      k.kernel,
      String(k.count),
      k.ms.toFixed(3),
      percent(k.ms, total),
      (k.bytes / 1e6).toFixed(1),
      giga(k.bytes, k.ms),
      percent(k.floorMs, k.ms),
    ]),
  )
  ui.line()
  ui.table(
    [
      right('ms'),
      right('loss ms'),
      right('floor %'),
      right('GF/s'),
      right('GB/s'),
      { title: 'op' },
      { title: 'kernel' },
      { title: 'shapes' },
    ],
    ops.map((r) => [
      r.ms.toFixed(3),
      loss(r).toFixed(3),
      percent(r.floorMs, r.ms),
      giga(r.flops, r.ms),
      giga(r.bytes, r.ms),
      r.op,
      r.kernel,
      r.shapes,
    ]),
  )
}
