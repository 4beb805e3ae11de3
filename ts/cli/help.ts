/** `--help`: examples first, then the options; a verb's text fits a screen. */
import { flagOf, GLOBAL, type OptionDef, type OptionTable, type VerbDef } from './options.js'

const WIDTH = 100

function signature(key: string, def: OptionDef): string {
  const value = def.kind === 'flag' ? '' : def.kind === 'text' && def.optional ? ` [${def.value}]` : ` ${def.value}`
  return `${def.short ? `${def.short}, ` : ''}${flagOf(key)}${value}`
}

function optionLines(table: OptionTable): string[] {
  const rows = Object.entries(table).flatMap(([key, def]) => {
    if (def.aside) return []
    const extra = [def.shown ? `default ${def.shown}` : '', def.env ? def.env[0] : ''].filter(Boolean).join('; ')
    return [[signature(key, def), `${def.help}${extra ? ` [${extra}]` : ''}`] as const]
  })
  const width = Math.max(...rows.map(([left]) => left.length))
  const aside = Object.entries(table).flatMap(([key, def]) => (def.aside ? [signature(key, def)] : []))
  return [
    ...rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`.slice(0, WIDTH)),
    ...(aside.length > 0 ? [`  ${aside.join('   ')}   (docs/cli.md)`] : []),
  ]
}

export function verbHelp(verb: VerbDef<OptionTable>): string {
  const lines = [
    ...verb.examples.map((e) => `  ${e}`),
    `effnet ${verb.name}${verb.positional ? ` ${verb.positional.usage}` : ''} [options]   ${verb.summary}`,
    ...optionLines(verb.options),
    `  ${Object.entries(GLOBAL)
      .map(([key, def]) => signature(key, def))
      .join('   ')}`,
    ...(verb.notes ?? []),
  ]
  return `${lines.join('\n')}\n`
}

export function mainHelp(verbs: readonly { name: string; summary: string }[]): string {
  const width = Math.max(...verbs.map((v) => v.name.length))
  return [
    '  effnet predict photo.jpg',
    '  effnet train --data photos --model efficientnet_b0 --out runs/first',
    '',
    'effnet VERB [options]   train, evaluate and run EfficientNet',
    ...verbs.map((v) => `  ${v.name.padEnd(width)}  ${v.summary}`),
    '',
    'effnet VERB --help tells the options of a verb; docs/cli.md every exit code and variable.',
    '',
  ].join('\n')
}
