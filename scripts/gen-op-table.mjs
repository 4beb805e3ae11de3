#!/usr/bin/env node
import { createHash } from 'node:crypto'
// Writes both sides' op enums from ts/graph/op_table.json. `--check` fails when a generated file is out of date.
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..')
const { ops } = JSON.parse(readFileSync(path.join(root, 'ts/graph/op_table.json'), 'utf8'))

const ids = new Set()
for (const op of ops) {
  if (ids.has(op.id)) throw new Error(`op id ${op.id} is used twice (${op.name})`)
  ids.add(op.id)
}
// The loader of a plan compares this hash, so that two sides built from different tables refuse each other.
const hash = createHash('sha256').update(JSON.stringify(ops)).digest('hex').slice(0, 8)

const ports = (names) =>
  (names ?? []).map((n) => ({ name: n.replace(/\?$|\.\.\.$/, ''), optional: n.endsWith('?'), variadic: n.endsWith('...') }))

const ts = `// Generated from op_table.json by scripts/gen-op-table.mjs. Do not edit.

export interface OpPort {
  readonly name: string
  readonly optional: boolean
  readonly variadic: boolean
}

export interface OpInfo {
  readonly id: number
  readonly name: string
  readonly inputs: readonly OpPort[]
  readonly outputs: readonly OpPort[]
  readonly updates: readonly OpPort[]
  readonly attrs: readonly string[]
  readonly fused: boolean
  /** Image n of the results needs image n of the sources (given a drop rate of 0) and nothing else of the batch. */
  readonly imageWise: boolean
}

export const OP_TABLE_HASH = 0x${hash}

export const OP_NAMES = [
${ops.map((o) => `  '${o.name}',`).join('\n')}
] as const

export type OpName = (typeof OP_NAMES)[number]

const port = (name: string, optional = false, variadic = false): OpPort => ({ name, optional, variadic })

export const OP_TABLE: Readonly<Record<OpName, OpInfo>> = {
${ops
  .map((o) => {
    const list = (names) =>
      `[${ports(names)
        .map((p) => `port('${p.name}'${p.variadic ? ', false, true' : p.optional ? ', true' : ''})`)
        .join(', ')}]`
    return `  ${o.name}: {
    id: ${o.id},
    name: '${o.name}',
    inputs: ${list(o.inputs)},
    outputs: ${list(o.outputs)},
    updates: ${list(o.updates)},
    attrs: [${o.attrs.map((a) => `'${a}'`).join(', ')}],
    fused: ${Boolean(o.fused)},
    imageWise: ${Boolean(o.image_wise)},
  },`
  })
  .join('\n')}
}
`

const spec = (names) => {
  const p = ports(names)
  const variadic = p.some((x) => x.variadic)
  const fixed = p.filter((x) => !x.variadic)
  const required = fixed.reduce((mask, x, i) => (x.optional ? mask : mask | (1 << i)), 0)
  return `${fixed.length}, 0x${required.toString(16)}, ${variadic}`
}
const inc = `// Generated from ts/graph/op_table.json by scripts/gen-op-table.mjs. Do not edit.
//
// EFF_OP(id, name, fixed inputs, mask of the required ones, variadic,
//        fixed outputs, mask, variadic, fixed updates, mask, variadic, attribute count)
// EFF_IMAGE_WISE_OP(name): image n of its results needs image n of its sources and nothing else of the batch
#ifdef EFF_OP_TABLE_HASH_ONLY
inline constexpr uint32_t kOpTableHash = 0x${hash}u;
#elif defined(EFF_IMAGE_WISE_OP)
${ops
  .filter((o) => o.image_wise)
  .map((o) => `EFF_IMAGE_WISE_OP(${o.name})`)
  .join('\n')}
#else
${ops.map((o) => `EFF_OP(${o.id}, ${o.name}, ${spec(o.inputs)}, ${spec(o.outputs)}, ${spec(o.updates)}, ${o.attrs.length})`).join('\n')}
#endif
`
const attrs = `// Generated from ts/graph/op_table.json by scripts/gen-op-table.mjs. Do not edit.
// Positions of inputs, outputs, updates and attributes of every op, by name.
#pragma once

namespace effnet::op {
${ops
  .map((o) => {
    const row = (kind, names) =>
      names.length ? `enum ${kind} : int { ${names.map((n, i) => `k_${n} = ${i}`).join(', ')} };` : ''
    const body = [
      row(
        'In',
        ports(o.inputs).map((p) => p.name),
      ),
      row(
        'Out',
        ports(o.outputs).map((p) => p.name),
      ),
      row(
        'Update',
        ports(o.updates).map((p) => p.name),
      ),
      row('Attr', o.attrs),
    ]
      .filter(Boolean)
      .map((l) =>
        l.replace(
          /k_(\w+)/g,
          (_, n) =>
            `${l.startsWith('enum Attr') ? 'attr_' : l.startsWith('enum Out') ? 'out_' : l.startsWith('enum Update') ? 'upd_' : 'in_'}${n}`,
        ),
      )
    return `namespace ${o.name} {\n${body.join('\n')}\n}`
  })
  .join('\n')}
}  // namespace effnet::op
`

const files = { 'ts/graph/op_table.ts': ts, 'native/plan/op_table.inc': inc, 'native/plan/op_ports.h': attrs }
let stale = 0
for (const [name, text] of Object.entries(files)) {
  const file = path.join(root, name)
  let old = ''
  try {
    old = readFileSync(file, 'utf8')
  } catch {}
  if (old === text) continue
  if (process.argv.includes('--check')) {
    console.error(`${name} is out of date: run node scripts/gen-op-table.mjs`)
    stale++
  } else writeFileSync(file, text)
}
process.exit(stale ? 1 : 0)
