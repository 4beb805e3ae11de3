/**
 * Machine code of kernels as cuobjdump prints it, as data: of each instruction its place, guard, name and operands.
 */
import { disassembled } from '../../../scripts/lib/kernel_use.mjs'

/** Operands are separated by commas; those inside of brackets do not count. */
function operandsOf(text) {
  const found = []
  let depth = 0
  let from = 0
  for (let i = 0; i <= text.length; i++) {
    if (text[i] === '[') depth++
    if (text[i] === ']') depth--
    if (i < text.length && (text[i] !== ',' || depth > 0)) continue
    const operand = text
      .slice(from, i)
      .replace(/\.reuse\b/, '')
      .trim()
    if (operand) found.push(operand)
    from = i + 1
  }
  return found
}

function instruction([, at, guard = '', name, rest]) {
  const [base, ...mods] = name.split('.')
  return { at: Number.parseInt(at, 16), guard: guard.slice(1), name, base, mods, operands: operandsOf(rest) }
}

/** The kernels of such a text, by name. */
export function parseKernels(text) {
  const kernels = new Map()
  for (const part of text.split('Function : ').slice(1)) {
    const lines = part.matchAll(/^\s*\/\*([0-9a-f]{4,})\*\/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);/gm)
    const code = [...lines].map(([, at, guard, name, rest]) => instruction([, at, guard?.trim(), name, rest]))
    kernels.set(part.slice(0, part.indexOf('\n')).trim(), code)
  }
  return kernels
}

/** Some kernels of a file that nvcc made (a cubin or a fat binary), by name. */
export const readKernels = (file, names) =>
  parseKernels(disassembled(file, '-sass', '-arch', 'sm_90a', '-fun', names.join(',')))
