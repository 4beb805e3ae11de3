#!/usr/bin/env node
/**
 * Writes the seeds of native/fuzz/corpus: plans as this build emits them, requests for tensors of files, and JPEG files of
 * test/fixtures. After a change of the op table: npm run setup && node scripts/make-fuzz-corpus.mjs
 *
 * Plans: one of each op by itself in each storage type, the ops around it, and whole programs of a tiny model.
 */
import { cpSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { Graph } from '../dist/graph/graph.js'
import { OP_TABLE } from '../dist/graph/op_table.js'
import { ARENA, ARENA_COUNT } from '../dist/graph/plan_format.js'
import { actCode } from '../dist/graph/types.js'
import { getModelConfig, modelParams } from '../dist/nn/index.js'
import { emit } from '../dist/passes/emit.js'
import { planMemory } from '../dist/passes/plan_memory.js'
import { evalProgram, trainProgram } from '../dist/runtime/programs.js'
import { weightsLayout } from '../dist/runtime/weights_layout.js'
import { root } from './lib/run.mjs'

const corpus = path.join(root, 'native/fuzz/corpus')
const fresh = (name) => {
  const folder = path.join(corpus, name)
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  return (file, bytes) => writeFileSync(path.join(folder, file), bytes)
}

// ---- plans -------------------------------------------------------------------------------------------------------

const stage = (more) => ({ op: 'mbconv', kernel: 3, stride: 1, expand: 2, in: 8, out: 8, repeats: 1, se: true, ...more })
const tiny = {
  ...getModelConfig('tf_efficientnet_b0', { numClasses: 3 }),
  stem: 8,
  stages: [stage({ expand: 1 }), stage({ kernel: 5, stride: 2, out: 16 }), stage({ op: 'fused', in: 16, out: 16, se: false })],
  head: 24,
}
const one = { ...tiny, stages: [stage({})], head: 16 }
const layouts = new Map([tiny, one].map((config) => [config, weightsLayout(modelParams(config))]))
const target = { device: 'cpu', isa: 'avx2' }
const gpu = { target: { device: 'cuda' } }
const optimizers = [{ name: 'sgd', nesterov: true }, { name: 'rmsprop_tf' }, { name: 'rmsprop' }, { name: 'adamw' }]

function train(config, dtype, optimizer, more = {}, numbers = {}) {
  const options = { batchSize: 2, imageSize: 8, dtype, optimizer, labelSmoothing: 0.1, dropRate: 0.2, dropPathRate: 0.2, target }
  const graph = trainProgram(config, { ...options, gradNorm: true, ema: true, ...more })
  const layout = layouts.get(config)
  const mirrors = { grads: true, moment0: true, moment1: optimizer.name !== 'sgd', ema: true }
  return emit(graph, planMemory(graph, { weightOffsets: layout.offsets, weightBytes: layout.bytes, mirrors }), numbers).bytes
}
function evaluate(config, dtype, more = {}) {
  const { graph, region } = evalProgram(config, { batchSize: 3, imageSize: 8, dtype, target, ...more })
  const layout = layouts.get(config)
  return emit(graph, planMemory(graph, { weightOffsets: layout.offsets, weightBytes: layout.bytes }, region)).bytes
}
/** Ops that no program has. */
function rest(dtype) {
  const graph = new Graph('rest')
  const x = graph.input('x', [2, 5, 5, 7], dtype)
  const logits = graph.input('logits', [3, 5], 'f32')
  const other = dtype === 'f32' ? 'bf16' : 'f32'
  graph.node('cast', { src: x }, {}, { name: 'cast', dtype: other, role: 'output' })
  graph.node('softmax', { logits }, {}, { name: 'softmax', role: 'output' })
  // Made only for large tensors, or in place of what other passes have taken.
  const channel = (name, c) => graph.input(name, [c], 'f32')
  const act = actCode('silu')
  const window = { stride: 1, pad_t: 0, pad_l: 0, pad_b: 0, pad_r: 0 }
  const norm = (c) => Object.fromEntries(['mean', 'inv_std', 'scale', 'shift'].map((name) => [name, channel(`${name}${c}`, c)]))
  const wide = graph.input('wide', [2, 5, 5, 9], dtype)
  const diff = graph.input('diff', [2, 5, 5, 9], dtype)
  const weights = graph.input('weights', [9, 1, 1, 7], 'f32')
  graph.node('bn_act_bwd_gate', { diff_dst: diff, src: wide, ...norm(9) }, { act }, { name: 'gate', role: 'output' })
  if (dtype === 'f32') {
    const sums = { diff_scale: channel('diff_scale', 9), diff_shift: channel('diff_shift', 9) }
    const attrs = {
      ...window,
      act: actCode('identity'),
      drop_rate: 0,
      rng_stream: 0,
      batch_stats: 1,
      src_act: actCode('identity'),
      end_drop_rate: 0,
      end_rng_stream: 0,
    }
    const operands = { src: x, weights, diff_dst: diff, dst: wide, ...norm(9), ...sums }
    graph.node('conv2d_bwd', operands, attrs, { name: 'conv_bwd', role: 'output' })
  }
  const [inner, outer] = [graph.input('inner', [2, 5, 5, 6], dtype), graph.input('outer', [16, 1, 1, 6], 'f32')]
  const depthwise = { depthwise_weights: graph.input('dw', [3, 3, 16], 'f32'), depthwise_bias: channel('db', 16) }
  const expand = { src: inner, weights: outer, bias: channel('bias', 16), ...depthwise }
  const padded = { stride: 1, pad_t: 1, pad_l: 1, pad_b: 1, pad_r: 1, expand_act: act, act }
  graph.node('expand_depthwise_bias_act', expand, padded, { name: 'expand', role: 'output' })
  graph.node('fill', {}, { value: 3 }, { name: 'fill', role: 'output', shapes: [[2, 5]], dtype })
  return emit(graph, planMemory(graph, { weightOffsets: new Map(), weightBytes: 0 })).bytes
}

/** A plan taken apart: see native/plan/format.h. */
function parse(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const [tensors, ops, refs, attrs] = [24, 28, 32, 36].map((at) => view.getUint32(at, true))
  const [tensorsAt, opsAt, refsAt, attrsAt] = [40, 48, 56, 64].map((at) => Number(view.getBigUint64(at, true)))
  const words32 = (at, count) => Array.from({ length: count }, (_, i) => view.getUint32(at + 4 * i, true))
  return {
    head: bytes.slice(0, view.getUint32(12, true)),
    tensors: Array.from({ length: tensors }, (_, i) => bytes.slice(tensorsAt + 48 * i, tensorsAt + 48 * (i + 1))),
    ops: Array.from({ length: ops }, (_, i) => ({
      op: view.getUint16(opsAt + 44 * i, true),
      flags: view.getUint16(opsAt + 44 * i + 2, true),
      words: words32(opsAt + 44 * i + 12, 8),
    })),
    refs: words32(refsAt, refs),
    attrs: Array.from({ length: attrs }, (_, i) => view.getFloat64(attrsAt + 8 * i, true)),
  }
}

/** Some ops of a plan with the tensors they name, placed anew. */
function extract(plan, indices) {
  const kept = new Map()
  const refs = []
  const attrs = []
  const ops = indices.map((index) => {
    const { op, flags, words } = plan.ops[index]
    const out = []
    for (const k of [0, 2, 4]) {
      out.push(refs.length, words[k + 1])
      for (const ref of plan.refs.slice(words[k], words[k] + words[k + 1])) {
        if (ref !== 0xffffffff && !kept.has(ref)) kept.set(ref, kept.size)
        refs.push(ref === 0xffffffff ? ref : kept.get(ref))
      }
    }
    out.push(attrs.length, words[7])
    attrs.push(...plan.attrs.slice(words[6], words[6] + words[7]))
    return { op, flags, words: out }
  })
  const up = (n, to) => Math.ceil(n / to) * to
  const ends = new Array(ARENA_COUNT).fill(0)
  const weights = new Map()
  const records = [...kept.keys()].map((ref) => plan.tensors[ref].slice())
  for (const grads of [false, true]) {
    for (const record of records) {
      const view = new DataView(record.buffer)
      // By itself an op runs on whole tensors: nothing of a region stays.
      if (record[9] === ARENA.image) record[9] = ARENA.activations
      record[11] = 0
      const arena = record[9]
      if ((arena === 1) !== grads) continue
      const before = Number(view.getBigUint64(16, true))
      const offset = (grads ? weights.get(before) : undefined) ?? ends[arena]
      if (arena === 0) weights.set(before, offset)
      ends[arena] = Math.max(ends[arena], up(offset + Number(view.getBigUint64(24, true)), 64))
      view.setBigUint64(16, BigInt(offset), true)
      view.setUint32(0, 0, true)
      view.setUint32(4, 1, true)
    }
  }
  const updates = ops.some((o) => ['optimizer_sgd', 'optimizer_rmsprop', 'optimizer_adamw', 'ema_update'].includes(names[o.op]))
  if (updates) for (let arena = 1; arena <= 4; arena++) ends[arena] = ends[0] = Math.max(ends[0], ends[1])
  const arenasAt = plan.head.length - 8 * ARENA_COUNT
  const at = { tensors: up(plan.head.length, 8) }
  at.ops = up(at.tensors + 48 * records.length, 8)
  at.refs = up(at.ops + 44 * ops.length, 8)
  at.attrs = up(at.refs + 4 * refs.length, 8)
  at.names = at.attrs + 8 * attrs.length
  const bytes = new Uint8Array(at.names + 8)
  bytes.set(plan.head)
  bytes.fill(0, 88, arenasAt)
  const view = new DataView(bytes.buffer)
  view.setBigUint64(16, BigInt(bytes.length), true)
  ;[records.length, ops.length, refs.length, attrs.length].forEach((n, i) => {
    view.setUint32(24 + 4 * i, n, true)
  })
  ;[at.tensors, at.ops, at.refs, at.attrs, at.names, 1].forEach((n, i) => {
    view.setBigUint64(40 + 8 * i, BigInt(n), true)
  })
  ends.forEach((n, i) => {
    view.setBigUint64(arenasAt + 8 * i, BigInt(n), true)
  })
  records.forEach((record, i) => {
    bytes.set(record, at.tensors + 48 * i)
  })
  ops.forEach(({ op, flags, words }, i) => {
    view.setUint16(at.ops + 44 * i, op, true)
    view.setUint16(at.ops + 44 * i + 2, flags, true)
    ;[0, 1, ...words].forEach((w, k) => {
      view.setUint32(at.ops + 44 * i + 4 + 4 * k, w, true)
    })
  })
  refs.forEach((ref, i) => {
    view.setUint32(at.refs + 4 * i, ref, true)
  })
  attrs.forEach((value, i) => {
    view.setFloat64(at.attrs + 8 * i, value, true)
  })
  bytes[at.names] = 'x'.charCodeAt(0)
  return bytes
}

const names = Object.fromEntries(Object.entries(OP_TABLE).map(([name, { id }]) => [id, name]))

function plans() {
  const write = fresh('plan')
  // The hash of the op table is put in by whoever reads a seed (native/fuzz/plan_editor.h): seeds that did not change stay as
  // they are.
  const put = (name, bytes) => write(name, bytes.fill(0, 8, 12))
  const missing = new Set(Object.keys(OP_TABLE))
  for (const dtype of ['f32', 'bf16', 'f16']) {
    const forCpus = dtype !== 'f16'
    const programs = !forCpus
      ? []
      : [
          ...optimizers.map((o) => train(tiny, dtype, o)),
          train(tiny, dtype, optimizers[0], { fuse: false, recompute: 'none' }),
          evaluate(tiny, dtype),
          evaluate(tiny, dtype, { fuse: false }),
          rest(dtype),
        ].map(parse)
    // Forms and a type that CPUs refuse: for the verifier alone, and for the GPU backend's tests.
    const forGpus = [train(tiny, dtype, optimizers[0], gpu), evaluate(tiny, dtype, gpu)].map(parse)
    const done = new Set()
    for (const plan of [...programs, ...forGpus]) {
      plan.ops.forEach(({ op, words }, index) => {
        const present = plan.refs.slice(words[0], words[0] + words[1]).map((r) => (r === 0xffffffff ? '.' : 'x'))
        const many = present.length > 16 && OP_TABLE[names[op]].inputs.some((port) => port.variadic)
        const kind = `${names[op]}-${many ? 'n' : present.join('')}`
        if (done.has(kind)) return
        done.add(kind)
        missing.delete(names[op])
        const bytes = extract(plan, [index])
        if (bytes.length <= 6000) put(`${forGpus.includes(plan) ? 'gpu-' : ''}${kind.replaceAll('.', '_')}.${dtype}`, bytes)
      })
    }
    put(`gpu-train.${dtype}`, train(one, dtype, optimizers[3], gpu))
    if (dtype === 'f32') put('gpu-train.tf32', train(one, dtype, optimizers[3], gpu, { tf32: true }))
    if (!forCpus) continue
    put(`step.${dtype}`, extract(programs[0], [12, 13, 14, 15, 16, 17]))
    put(`eval.${dtype}`, evaluate(one, dtype))
    put(`train.${dtype}`, train(one, dtype, optimizers[3]))
  }
  if (missing.size > 0) process.stderr.write(`no seed for ${[...missing].join(', ')}\n`)
}

// ---- requests for tensors of files -------------------------------------------------------------------------------

/** As native/fuzz/transfer_target.cc reads them. */
function request(weightBytes, dataBytes, tensors) {
  const head = Buffer.alloc(16)
  head.writeUInt16LE(weightBytes, 0)
  head.writeUInt16LE(weightBytes, 2)
  head.writeUIntLE(dataBytes, 12, 3)
  head[15] = tensors.length
  const records = tensors.map(({ dtype, permute, offset, fileOffset, shape }) => {
    const record = Buffer.alloc(28)
    record.writeUInt32LE((dtype << 1) | (permute << 3), 0)
    ;[offset, fileOffset, ...shape].forEach((n, i) => {
      record.writeUInt32LE(n, 4 + 4 * i)
    })
    return record
  })
  const data = Buffer.from({ length: dataBytes }, 0)
  for (let i = 0; i < dataBytes; i++) data[i] = (i * 37) & 255
  return Buffer.concat([head, ...records, data])
}

function transfers() {
  const put = fresh('transfer')
  const shapes = [
    [24, 1, 1, 1],
    [4, 3, 2, 1],
    [8, 1, 3, 1],
  ]
  for (const dtype of [0, 1, 2, 3]) {
    for (const permute of [0, 1, 2]) {
      const shape = shapes[permute]
      put(`d${dtype}p${permute}`, request(512, 400, [{ dtype, permute, offset: 128, fileOffset: 40, shape }]))
    }
  }
  const many = [0, 1, 2, 3, 1, 2].map((dtype, i) => ({
    dtype,
    permute: i % 3,
    offset: 100 * i,
    fileOffset: 200 * i,
    shape: shapes[i % 3],
  }))
  put('many', request(800, 1400, many))
  put('no-elements', request(0, 0, [{ dtype: 0, permute: 0, offset: 0, fileOffset: 0, shape: [0, 1, 1, 1] }]))
  // Nothing, but not a loop over its long side; a word with the highest bit is twice its value.
  put('endless-side', request(512, 400, [{ dtype: 3, permute: 1, offset: 128, fileOffset: 40, shape: [4, 0xfffffff0, 0, 1] }]))
}

// ---- images ------------------------------------------------------------------------------------------------------

function images() {
  fresh('image')
  const from = path.join(root, 'test/fixtures/io')
  for (const name of readdirSync(from)) {
    if (name.endsWith('.jpg') && statSync(path.join(from, name)).size < 8000)
      cpSync(path.join(from, name), path.join(corpus, 'image', name))
  }
}

plans()
transfers()
images()
