#!/usr/bin/env node
/**
 * Variants of the tiled depthwise kernels, judged without a GPU: compiles them for sm_90a and reads of the machine code what a thread
 * executes for a result, beside what an H200's memory leaves time for. Needs `npm run setup -- --cuda --test`.
 *
 *   node native/lab/cuda_depthwise.mjs [--set NAME=VALUE]... [--halo 1.15] [kernel]
 *
 * --set kDepthwiseStrip=2 gives a constant of kernels/depthwise*.h another value, in a copy; --halo: pixels staged for a pixel of a tile.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { disassembled } from '../../scripts/lib/kernel_use.mjs'
import { root } from '../../scripts/lib/run.mjs'

const { values, positionals } = parseArgs({
  options: { set: { type: 'string', multiple: true, default: [] }, halo: { type: 'string', default: '1.15' } },
  allowPositionals: true,
})
const halo = Number(values.halo)
const cuda = path.join(root, '.cache/cuda-13.0/cu13')

// Of a multiprocessor of an H200 and a cycle: bytes of memory, instructions of threads, results of the tanh unit, registers.
const BYTES = 18.6
const ISSUED = 128
const TANH = 16
const REGISTERS = 65536

/** A folder with the depthwise headers, in which constants have other values. */
function withConstants(folder) {
  const kernels = path.join(root, 'native/cuda/kernels')
  const missing = new Set(values.set)
  mkdirSync(path.join(folder, 'cuda/kernels'), { recursive: true })
  for (const name of readdirSync(kernels).filter((file) => /^depthwise.*h$/.test(file))) {
    let text = readFileSync(path.join(kernels, name), 'utf8')
    for (const change of values.set) {
      const [constant, value] = change.split('=')
      const place = new RegExp(`\\b${constant} = [^,;]+`)
      if (place.test(text)) missing.delete(change)
      text = text.replace(place, `${constant} = ${value}`)
    }
    writeFileSync(path.join(folder, 'cuda/kernels', name), text)
  }
  if (missing.size > 0) throw new Error(`no constant of kernels/depthwise*.h: ${[...missing].join(', ')}`)
}

function compile(file, folder) {
  const cubin = path.join(folder, `${file}.cubin`)
  const includes = [folder, path.join(root, 'native'), path.join(cuda, 'include')].map((at) => `-I${at}`)
  const source = path.join(root, 'native/cuda/kernels', `${file}.cu`)
  const flags = ['-std=c++20', '-O3', '-DNDEBUG', '-gencode', 'arch=compute_90a,code=sm_90a', '-cubin', '-Xptxas', '-v']
  const made = spawnSync(path.join(cuda, 'bin/nvcc'), [...flags, ...includes, source, '-o', cubin], { encoding: 'utf8' })
  if (made.status !== 0) throw new Error(made.error?.message ?? made.stderr)
  return { report: made.stderr, code: disassembled(cubin, '-sass') }
}

/** The innermost loops of a kernel's code: how often each instruction stands there. */
function innermost(code) {
  const lines = [...code.matchAll(/^\s*\/\*([0-9a-f]{4,})\*\/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);/gm)]
  const all = lines.map(([, at, op, rest]) => ({ at: Number.parseInt(at, 16), op, to: Number(rest.match(/0x[0-9a-f]+/)?.[0]) }))
  const loops = all.filter((i) => i.op.startsWith('BRA') && i.to < i.at).map((i) => [i.to, i.at])
  const inner = loops.filter(([a, b]) => !loops.some(([x, y]) => x >= a && y <= b && (x > a || y < b)))
  return inner.map(([a, b]) => {
    const body = all.filter((i) => i.at >= a && i.at <= b)
    return { size: body.length, count: (what) => body.filter((i) => what.test(i.op)).length }
  })
}
const shortest = (loops) => loops.toSorted((a, b) => a.size - b.size)[0]

function row(name, code, report) {
  const [, whole, k, s] = name.match(/(bwd_whole_|bwd_)?k(\d)s(\d)/)
  const loops = innermost(code)
  // SiLU is in front of all: the loop that stages with it is the one with a tanh for every value.
  const stage = shortest(loops.filter((l) => l.count(/^STS.*128/) > 0 && l.count(/^MUFU.TANH/) >= 8 * l.count(/^STS.*128/)))
  const rows = shortest(loops.filter((l) => l.count(/^STG/) > 0 && l.count(/^FFMA/) >= 8 * k * (k / s)))
  const results = 2 * rows.count(/^STG/)
  const staged = (whole ? 1 / s ** 2 : s ** 2) * halo
  const perStaged = stage.size / (8 * stage.count(/^STS.*128/))
  const perResult = rows.size / results
  const bytes = whole ? 4 + 4 / s ** 2 : 2 + 2 * s ** 2
  const tanh = staged + rows.count(/^MUFU.TANH/) / results
  const found = report.match(new RegExp(`'${name}'[\\s\\S]*?(\\d+) bytes spill stores[\\s\\S]*?Used (\\d+)`))
  const memory = bytes / BYTES
  return {
    kernel: name,
    registers: Number(found[2]),
    spilled: Number(found[1]),
    'warps a SM': Math.floor(Math.floor(REGISTERS / 32 / found[2]) / 4) * 4,
    'products': rows.count(/^FFMA/) / results,
    'a staged value': perStaged.toFixed(1),
    'a result': perResult.toFixed(1),
    'issue : memory': ((perResult + staged * perStaged) / ISSUED / memory).toFixed(2),
    'tanh : memory': (tanh / TANH / memory).toFixed(2),
  }
}

const folder = mkdtempSync(path.join(os.tmpdir(), 'depthwise-'))
try {
  withConstants(folder)
  const table = ['depthwise_forward', 'depthwise_backward'].flatMap((file) => {
    const { code, report } = compile(file, folder)
    const functions = code.split('Function : ').slice(1)
    const named = functions.map((text) => [text.slice(0, text.indexOf('\n')).trim(), text])
    // In training: forward, and what makes all of a block's backward part.
    const wanted = named.filter(([name]) => /^depthwise_(bwd_whole_)?k\ds\d_bf16$/.test(name) && name.includes(positionals[0] ?? ''))
    return wanted.map(([name, text]) => row(name, text, report)).toReversed()
  })
  console.table(table)
} finally {
  rmSync(folder, { recursive: true })
}
