/**
 * What every CUDA kernel takes of a multiprocessor, as the assembler reports it, within its budget (native/cuda/budgets.json): registers a
 * thread decide how many warps fit, and a spill goes to memory.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { packageRoot } from '../../ts/paths.js'

const folder = path.join(packageRoot(), 'build/kernels')
const budgets = JSON.parse(readFileSync(path.join(packageRoot(), 'native/cuda/budgets.json'), 'utf8')) as Record<
  string,
  Record<string, number>
>

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

const built = existsSync(folder)

describe.skipIf(!built)(`CUDA kernels${built ? '' : ` (not compiled: npm run setup -- --test)`}`, () => {
  const all = built ? uses() : []

  it('have a budget each', () => {
    for (const architecture of new Set(all.map((use) => use.architecture))) {
      const kernels = all.filter((use) => use.architecture === architecture).map((use) => use.kernel)
      expect(kernels.sort()).toEqual(Object.keys(budgets[architecture] ?? {}).sort())
    }
    expect(all.length).toBeGreaterThan(50)
  })

  it('keep to it, and spill nothing', () => {
    const over = all.filter((use) => use.spilled > 0 || use.registers > (budgets[use.architecture]?.[use.kernel] ?? 0))
    expect(over).toEqual([])
  })
})
