/**
 * What every CUDA kernel takes of a multiprocessor, as the assembler reports it, within its budget (native/cuda/budgets.json): registers a
 * thread decide how many warps fit, and a spill goes to memory. And what its machine code is made of (native/cuda/instructions.json):
 * wide accesses, tensor cores, the one-instruction tanh are easily lost to a compiler, and nothing but speed tells.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { packageRoot } from '../../ts/paths.js'

const at = (...names: string[]): string => path.join(packageRoot(), ...names)
/** Of another build: scripts/cuda_checks.mjs. */
const folder = process.env['EFFNET_KERNELS'] ?? at('build/kernels')
const disassemblers = at('.cache/cuda-disassemblers-13.5/cu13/bin')
const json = (file: string): unknown => JSON.parse(readFileSync(at('native/cuda', file), 'utf8'))
/** Registers a thread on sm_90a. */
const budgets = (json('budgets.json') as { sm_90a: Record<string, number> }).sm_90a
const rules = json('instructions.json') as { kernels: string; has?: string[]; not?: string[] }[]

interface Use {
  architecture: string
  kernel: string
  registers: number
  spilled: number
}

function uses(): Use[] {
  const text = readdirSync(folder)
    .filter((file) => file.endsWith('.resources.txt'))
    .map((file) => readFileSync(path.join(folder, file), 'utf8'))
    .join('')
  const found: Use[] = []
  const entry =
    /entry function '(\w+)' for '(\w+)'[\s\S]*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads[\s\S]*?Used (\d+) registers/g
  for (const [, kernel, architecture, stack, stores, loads, registers] of text.matchAll(entry)) {
    const spilled = Number(stack) + Number(stores) + Number(loads)
    found.push({ architecture: architecture!, kernel: kernel!, registers: Number(registers), spilled })
  }
  return found
}

/** The opcodes of each kernel on sm_90a, with their modifiers, e.g. "LDG.E.128.CONSTANT". */
function opcodes(): Map<string, Set<string>> {
  const found = new Map<string, Set<string>>()
  const env = { ...process.env, PATH: `${disassemblers}:${process.env['PATH']}` }
  for (const file of readdirSync(folder).filter((name) => name.endsWith('.fatbin'))) {
    const text = execFileSync('cuobjdump', ['-sass', '-arch', 'sm_90a', path.join(folder, file)], {
      env,
      encoding: 'utf8',
      maxBuffer: 2 ** 30,
    })
    for (const part of text.split('Function : ').slice(1)) {
      const codes = [...part.matchAll(/^\s*\/\*[0-9a-f]{4,}\*\/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)/gm)].map(
        (match) => match[1]!,
      )
      found.set(part.slice(0, part.indexOf('\n')).trim(), new Set(codes))
    }
  }
  return found
}

const built = existsSync(folder)

describe.skipIf(!built)(`CUDA kernels${built ? '' : ' (not compiled: npm run setup -- --test)'}`, () => {
  const all = built ? uses() : []

  it('have a budget each', () => {
    for (const architecture of new Set(all.map((use) => use.architecture))) {
      const kernels = all.filter((use) => use.architecture === architecture).map((use) => use.kernel)
      expect(kernels.sort()).toEqual(Object.keys(budgets).sort())
    }
    expect(all.length).toBeGreaterThan(50)
  })

  // Other architectures have other instructions, so that a value more or less is alive; a few bytes around a call of a division.
  it('keep to it, and spill nothing', () => {
    const over = all.filter(({ architecture, kernel, registers, spilled }) => {
      const own = architecture === 'sm_90a'
      return spilled > (own ? 0 : 64) || registers > (budgets[kernel] ?? 0) + (own ? 0 : 24)
    })
    expect(over).toEqual([])
  })

  it('are made of the instructions that they were written for', () => {
    const kernels = opcodes()
    expect(kernels.size).toBe(new Set(all.map((use) => use.kernel)).size)
    const wrong: string[] = []
    for (const { kernels: names, has = [], not = [] } of rules) {
      const matching = [...kernels].filter(([kernel]) => new RegExp(`^(?:${names})$`).test(kernel))
      if (matching.length === 0) wrong.push(`no kernel is called ${names}`)
      for (const [kernel, codes] of matching) {
        const contains = (code: string): boolean => [...codes].some((each) => `${each}.`.startsWith(`${code}.`))
        for (const code of has) if (!contains(code)) wrong.push(`${kernel} has no ${code}`)
        for (const code of not) if (contains(code)) wrong.push(`${kernel} has ${code}`)
      }
    }
    expect(wrong).toEqual([])
  }, 300_000)
})
