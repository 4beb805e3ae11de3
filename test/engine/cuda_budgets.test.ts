/**
 * What every CUDA kernel takes of a multiprocessor, within its budget (native/cuda/budgets.json, written by
 * scripts/kernel_budgets.mjs): registers a thread, as the assembler reports them, threads and shared memory of a block decide how many
 * warps fit, and a spill goes to memory. And what its machine code is made of (native/cuda/instructions.json): wide accesses, tensor
 * cores, the one-instruction tanh are easily lost to a compiler, and nothing but speed tells.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { launchNetworks } from '../../scripts/lib/kernel_launches.mjs'
import { assembled, compiledThreads, cuobjdump, launched, residentBlocks } from '../../scripts/lib/kernel_use.mjs'
import { packageRoot } from '../../ts/paths.js'
import { FAKE_DRIVER, itWith } from '../helpers/stand_in.js'

const at = (...names: string[]): string => path.join(packageRoot(), ...names)
/** Of another build: scripts/cuda_checks.mjs. */
const folder = process.env['EFFNET_KERNELS'] ?? at('build/kernels')
const json = (file: string): unknown => JSON.parse(readFileSync(at('native/cuda', file), 'utf8'))
const OWN = 'sm_90a'
/** Registers a thread; threads and bytes of shared memory of a block, and how many a multiprocessor holds; null: not launched by the networks. */
const budgets = json('budgets.json') as {
  sm_90a: Record<string, number>
  blocks: Record<string, { threads: number; shared: number | null; blocks: number | null }>
}
const rules = json('instructions.json') as { kernels: string; has?: string[]; not?: string[] }[]

/** The opcodes of each kernel, with their modifiers, e.g. "LDG.E.128.CONSTANT". */
function opcodes(architecture: string): Map<string, Set<string>> {
  const found = new Map<string, Set<string>>()
  for (const text of cuobjdump(folder, '-sass', '-arch', architecture)) {
    for (const part of text.split('Function : ').slice(1)) {
      const codes = [...part.matchAll(/^\s*\/\*[0-9a-f]{4,}\*\/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)/gm)].map(
        (match) => match[1]!,
      )
      found.set(part.slice(0, part.indexOf('\n')).trim(), new Set(codes))
    }
  }
  return found
}

/** Elsewhere a few bytes of a stack are allowed, and forms of an instruction have other names: loads and stores by width, the matrix units of TF32. */
const isOfAll = (code: string): boolean => /^(HMMA|LDGSTS|LDSM|MUFU|LDG\.E\.U8)/.test(code)

const built = existsSync(folder)

describe('blocks of a multiprocessor', () => {
  it('are as many as each of its resources lets in', () => {
    const block = { registers: 32, threads: 256, shared: 0 }
    expect(residentBlocks(OWN, block)).toBe(8)
    expect(residentBlocks(OWN, { ...block, threads: 32 })).toBe(32)
    expect(residentBlocks(OWN, { ...block, registers: 33 })).toBe(6)
    expect(residentBlocks(OWN, { ...block, registers: 128 })).toBe(2)
    expect(residentBlocks(OWN, { ...block, shared: 75 << 10 })).toBe(3)
    expect(residentBlocks(OWN, { ...block, shared: 76 << 10 })).toBe(2)
    expect(residentBlocks('sm_86', { ...block, threads: 1024 })).toBe(1)
    expect(residentBlocks('sm_86', { ...block, shared: 100 << 10 })).toBe(0)
  })
})

describe.skipIf(!built)(`CUDA kernels${built ? '' : ' (not compiled: npm run setup -- --test)'}`, () => {
  const all = built ? assembled(folder) : []
  const architectures = [...new Set(all.map((use) => use.architecture))].filter((name) => name.startsWith('sm_'))

  it('have a budget each', () => {
    for (const architecture of new Set(all.map((use) => use.architecture))) {
      const kernels = all.filter((use) => use.architecture === architecture).map((use) => use.kernel)
      expect(kernels.sort()).toEqual(Object.keys(budgets.sm_90a).sort())
    }
    expect(Object.keys(budgets.blocks)).toEqual(Object.keys(budgets.sm_90a))
    expect(all.length).toBeGreaterThan(50)
  })

  // Other architectures have other instructions, so that a value more or less is alive; a few bytes around a call of a division.
  it('keep to it, and spill nothing', () => {
    const over = all.filter(({ architecture, kernel, registers, spilled }) => {
      const own = architecture === OWN
      return spilled > (own ? 0 : 64) || registers > (budgets.sm_90a[kernel] ?? 0) + (own ? 0 : 24)
    })
    expect(over).toEqual([])
  })

  it.each(architectures)(
    'are compiled for blocks of as many threads, of which as many fit: %s',
    { timeout: 300_000 },
    (architecture) => {
      const threads = compiledThreads(folder, architecture)
      const wrong = all
        .filter((use) => use.architecture === architecture)
        .flatMap(({ kernel, registers }) => {
          const budget = budgets.blocks[kernel]!
          if (threads.get(kernel) !== budget.threads)
            return [`${kernel}: ${threads.get(kernel)} threads, ${budget.threads} were budgeted`]
          if (budget.shared === null) return []
          const fit = residentBlocks(architecture, { registers, threads: budget.threads, shared: budget.shared })
          // Elsewhere it need only be possible to launch it.
          const least = architecture === OWN ? budget.blocks! : 1
          return fit >= least ? [] : [`${kernel}: ${fit} blocks fit, ${least} were budgeted`]
        })
      expect(wrong).toEqual([])
    },
  )

  it.each(architectures)('are made of the instructions that they were written for: %s', { timeout: 300_000 }, (architecture) => {
    const own = architecture === OWN
    const kernels = opcodes(architecture)
    expect([...kernels.keys()].sort()).toEqual([...new Set(all.map((use) => use.kernel))].sort())
    const wrong: string[] = []
    for (const { kernels: names, has = [], not = [] } of rules) {
      const matching = [...kernels].filter(([kernel]) => new RegExp(`^(?:${names})$`).test(kernel))
      if (matching.length === 0) wrong.push(`no kernel is called ${names}`)
      for (const [kernel, codes] of matching) {
        const contains = (code: string): boolean => [...codes].some((each) => `${each}.`.startsWith(`${code}.`))
        for (const code of has.filter((each) => own || isOfAll(each))) if (!contains(code)) wrong.push(`${kernel} has no ${code}`)
        for (const code of not.filter((each) => own || isOfAll(each))) if (contains(code)) wrong.push(`${kernel} has ${code}`)
      }
    }
    expect(wrong).toEqual([])
  })

  itWith(FAKE_DRIVER, 'take no more shared memory in a network than their budget says', 300_000, async () => {
    const work = mkdtempSync(path.join(os.tmpdir(), 'effnet-launches-'))
    try {
      const file = path.join(work, 'launches')
      await launchNetworks(file, undefined, [['efficientnet_b0', 224]], ['bf16-mixed'])
      const seen = launched(file)
      expect(seen.size).toBeGreaterThan(40)
      const over = [...seen].filter(([kernel, { threads, shared }]) => {
        const budget = budgets.blocks[kernel]
        return !budget || threads > budget.threads || shared > (budget.shared ?? -1)
      })
      expect(over).toEqual([])
    } finally {
      rmSync(work, { recursive: true })
    }
  })
})
