/** docs/cli.md tells the options as the tables have them, every exit code, error code and variable. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { verb as bench } from '../../ts/cli/bench.js'
import type { Verb } from '../../ts/cli/call.js'
import { verb as doctor } from '../../ts/cli/doctor.js'
import { verb as evaluate } from '../../ts/cli/eval.js'
import { EXIT } from '../../ts/cli/exit.js'
import { verb as models } from '../../ts/cli/models.js'
import { flagOf, GLOBAL } from '../../ts/cli/options.js'
import { verb as predict } from '../../ts/cli/predict.js'
import { acceptedForm } from '../../ts/cli/schema.js'
import { verb as train } from '../../ts/cli/train.js'
import { verb as version } from '../../ts/cli/version.js'

const file = path.resolve(fileURLToPath(import.meta.url), '../../../docs/cli.md')
const text = readFileSync(file, 'utf8')
const verbs = [train, evaluate, predict, bench, models, doctor, version]

function section({ def }: Verb): string {
  const head = `### effnet ${def.name}${def.positional ? ` ${def.positional.usage}` : ''}\n\n${def.summary}.\n`
  const examples = def.examples.map((e) => `    ${e}\n`).join('')
  const cell = (s: string): string => s.replaceAll('|', '\\|')
  const rows = Object.entries(def.options).map(([key, o]) => {
    const value = o.kind === 'flag' ? '' : o.kind === 'text' && o.optional ? ` [${o.value}]` : ` ${o.value}`
    const accepted = o.kind === 'flag' || o.kind === 'text' ? '' : acceptedForm(o)
    const initial = [o.shown, ...(o.env ?? []).map((e) => `\`${e}\``)].filter(Boolean).join(', ')
    return `| \`${cell(flagOf(key) + value)}\` | ${cell(o.help)} | ${cell(accepted)} | ${initial} |`
  })
  const table = rows.length > 0 ? `\n| option | meaning | accepted | default |\n|---|---|---|---|\n${rows.join('\n')}\n` : ''
  return `${head}\n${examples}${table}`
}

describe('docs/cli.md', () => {
  it('has the options of every verb', async () => {
    const begin = text.indexOf('-->', text.indexOf('<!-- options:')) + 3
    const end = text.indexOf('<!-- end -->')
    expect(end).toBeGreaterThan(begin)
    const body = verbs.map(section).join('\n')
    await expect(`${text.slice(0, begin)}\n\n${body}\n${text.slice(end)}`).toMatchFileSnapshot(file)
  })

  it('has every exit code', () => {
    const listed = [...text.matchAll(/^\| (\d+) \|/gm)].map((m) => Number(m[1]))
    expect(listed).toEqual(Object.values(EXIT).sort((a, b) => a - b))
  })

  it('has every error code with its exit code', () => {
    const source = readFileSync(path.resolve(file, '../../ts/errors.ts'), 'utf8')
    const codes = [...new Set(source.match(/EFF_[A-Z_]+/g))]
    for (const code of codes) expect(text).toMatch(new RegExp(`^\\| \\d+ \\|.*\\b${code}\\b`, 'm'))
  })

  it('has every variable and general option', () => {
    for (const { def } of verbs)
      for (const option of Object.values(def.options)) for (const name of option.env ?? []) expect(text).toContain(`\`${name}\``)
    for (const key of Object.keys(GLOBAL)) expect(text).toContain(flagOf(key))
  })
})
