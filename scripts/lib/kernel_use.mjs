/**
 * What each CUDA kernel takes of a multiprocessor: registers as the assembler says, threads as it was compiled for, shared memory as it
 * is launched with for whole networks.
 */
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { disassemblerFolder } from './cuda.mjs'

/** What cuobjdump prints of a file that nvcc made: a cubin or a fat binary. */
export function disassembled(file, ...args) {
  const env = { ...process.env, PATH: `${disassemblerFolder}:${process.env.PATH}` }
  return execFileSync('cuobjdump', [...args, file], { env, encoding: 'utf8', maxBuffer: 2 ** 30 })
}

/** Likewise of each fat binary of a folder. */
export const cuobjdump = (folder, ...args) =>
  readdirSync(folder)
    .filter((name) => name.endsWith('.fatbin'))
    .map((name) => disassembled(path.join(folder, name), ...args))

/** A row for each kernel and architecture, of what the assembler has told. */
export function assembled(folder) {
  const text = readdirSync(folder)
    .filter((file) => file.endsWith('.resources.txt'))
    .map((file) => readFileSync(path.join(folder, file), 'utf8'))
    .join('')
  const entry =
    /entry function '(\w+)' for '(\w+)'[\s\S]*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads[\s\S]*?Used (\d+) registers/g
  return [...text.matchAll(entry)].map(([, kernel, architecture, stack, stores, loads, registers]) => ({
    architecture,
    kernel,
    registers: Number(registers),
    spilled: Number(stack) + Number(stores) + Number(loads),
  }))
}

/** Threads of a block that each kernel was compiled for. */
export function compiledThreads(folder, architecture) {
  const threads = new Map()
  for (const text of cuobjdump(folder, '-elf', '-arch', architecture))
    for (const part of text.split(/^\.nv\.info\./m).slice(1)) {
      const most = /EIATTR_MAX_THREADS\s+Format:\s+EIFMT_SVAL\s+Value:\s+0x([0-9a-f]+) 0x([0-9a-f]+) 0x([0-9a-f]+)/.exec(part)
      if (most)
        threads.set(
          /^\w+/.exec(part)[0],
          most.slice(1).reduce((product, n) => product * Number.parseInt(n, 16), 1),
        )
    }
  return threads
}

/** Of a file that FAKE_CUDA_LAUNCHES named: the largest launch of each kernel. */
export function launched(file) {
  const found = new Map()
  for (const line of readFileSync(file, 'utf8').trimEnd().split('\n')) {
    const [, kernel, , , , threads, shared] = line.split(' ')
    const most = found.get(kernel) ?? { threads: 0, shared: 0 }
    found.set(kernel, { threads: Math.max(most.threads, Number(threads)), shared: Math.max(most.shared, Number(shared)) })
  }
  return found
}

/** Of one multiprocessor, by NVIDIA's table of compute capabilities: warps, blocks, KiB of shared memory; and KiB that a block may have. */
const PROCESSORS = {
  sm_80: { warps: 64, blocks: 32, shared: 164, ofBlock: 163 },
  sm_86: { warps: 48, blocks: 16, shared: 100, ofBlock: 99 },
  sm_89: { warps: 48, blocks: 24, shared: 100, ofBlock: 99 },
  sm_90a: { warps: 64, blocks: 32, shared: 228, ofBlock: 227 },
  sm_100: { warps: 64, blocks: 32, shared: 228, ofBlock: 227 },
  sm_120: { warps: 48, blocks: 24, shared: 100, ofBlock: 99 },
}
const REGISTERS = 65536

/** Blocks that a multiprocessor holds at once. A warp's registers come in 256, and 1 KiB of a block's shared memory is the system's. */
export function residentBlocks(architecture, { registers, threads, shared }) {
  const processor = PROCESSORS[architecture]
  if (shared > processor.ofBlock * 1024) return 0
  const warps = Math.ceil(threads / 32)
  const ofWarp = Math.ceil((registers * 32) / 256) * 256
  return Math.min(
    processor.blocks,
    Math.floor(processor.warps / warps),
    Math.floor(REGISTERS / (ofWarp * warps)),
    Math.floor((processor.shared * 1024) / (shared + 1024)),
  )
}
