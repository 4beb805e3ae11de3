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

export interface Profile {
  peaks: Peaks
  /** By ms - floorMs, the largest first. */
  ops: ProfiledOp[]
  /** The same by kind of op. */
  kinds: OpKind[]
}

const loss = (row: { ms: number; floorMs: number }): number => row.ms - row.floorMs

/** Only dense convolutions multiply in bf16; everything else computes in FP32, whatever it stores. */
const multipliesBf16 = ({ op, shapes }: KernelRow): boolean => /^conv2d/.test(op) && shapes.includes('bf16[')

export function profileOf(rows: readonly KernelRow[], peaks: Peaks): Profile {
  const ops = rows
    .map((row) => {
      const peak = multipliesBf16(row) && peaks.bf16Flops > 0 ? peaks.bf16Flops : peaks.fp32Flops
      return { ...row, floorMs: 1e3 * Math.max(row.flops / peak, row.bytes / peaks.bytes) }
    })
    .sort((a, b) => loss(b) - loss(a))
  const kinds = new Map<string, OpKind>()
  for (const { op, ms, floorMs } of ops) {
    const kind = kinds.get(op) ?? { op, count: 0, ms: 0, floorMs: 0 }
    kinds.set(op, { op, count: kind.count + 1, ms: kind.ms + ms, floorMs: kind.floorMs + floorMs })
  }
  return { peaks, ops, kinds: [...kinds.values()].sort((a, b) => loss(b) - loss(a)) }
}

const percent = (part: number, whole: number): string => (whole > 0 ? ((100 * part) / whole).toFixed(1) : '-')
const giga = (amount: number, ms: number): string => (amount > 0 && ms > 0 ? (amount / ms / 1e6).toFixed(1) : '-')

/**
 * Shares above 100 % are possible: operands that were still in a cache cost less than the memory's bandwidth says, and Winograd's
 * convolutions multiply less than the direct ones whose FLOPs they report.
 */
export function profileTables(ui: Ui, { peaks, ops, kinds }: Profile): void {
  const right = (title: string) => ({ title, align: 'right' as const })
  const total = kinds.reduce((sum, k) => sum + k.ms, 0)
  const floor = kinds.reduce((sum, k) => sum + k.floorMs, 0)
  const [fp32, bf16] = [peaks.fp32Flops, peaks.bf16Flops].map((f) => (f / 1e9).toFixed(0))
  ui.line()
  ui.line(
    `peak   fp32 ${fp32} GF/s · ${peaks.bf16Flops > 0 ? `bf16 ${bf16} GF/s · ` : ''}memory ${(peaks.bytes / 1e9).toFixed(1)} GB/s`,
  )
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
