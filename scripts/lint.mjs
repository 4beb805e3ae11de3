#!/usr/bin/env node
/**
 * `npm run lint`: biome, clang-format, generated files, and the borders of the architecture. `--fix` (`npm run format`)
 * writes what can be written.
 */
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { probe, root } from './lib/run.mjs'
import { filesUnder } from './lib/stamp.mjs'

const fix = process.argv.includes('--fix')
const CLANG_FORMAT = 14

/** Who may include or import what; each rule is `files`, `pattern` that must not occur there, and `why`. */
const BORDERS = [
  {
    files: (f) => f.startsWith('native/') && !f.startsWith('native/napi/'),
    pattern: /#include\s*[<"](napi|node_api|js_native_api|uv)\.h[>"]/,
    why: 'Node headers belong in native/napi only',
  },
  {
    files: (f) => /^native\/(plan|core)\//.test(f),
    pattern: /#include\s*[<"](cpu|cuda|io|napi)\//,
    why: 'native/plan and native/core know no backend',
  },
  {
    files: (f) => f.startsWith('ts/') && f !== 'ts/binding.ts',
    pattern: /createRequire|effnet\.node|process\.dlopen/,
    why: 'ts/binding.ts is the single importer of the addon',
  },
  {
    files: (f) => f.startsWith('ts/') && !f.startsWith('ts/cli/'),
    pattern: /\bconsole\.|process\.(stdout|stderr)\.write|process\.exit\b|process\.on(ce)?\('SIG/,
    why: 'the library prints nothing and installs no signal handlers',
  },
  {
    files: (f) => /^ts\/(graph|passes|nn)\//.test(f),
    pattern: /from '(\.\.\/)+(runtime\/(?!scalars\.js)|(train|data|infer|report|weights|cli|binding)\b)/,
    why: 'arrows go down only: graphs, passes and models do not know who runs them (the list of step scalars is shared)',
  },
]

function report(name, ok, text) {
  process.stdout.write(`${ok ? 'ok    ' : 'FAILED'}  ${name}\n`)
  if (!ok) process.stdout.write(`${text.trim()}\n`)
  return ok
}

function biome() {
  const bin = createRequire(path.join(root, 'package.json')).resolve('@biomejs/biome/bin/biome')
  const r = probe(process.execPath, [
    bin,
    fix ? 'check' : 'ci',
    ...(fix ? ['--write'] : []),
    '--colors=off',
    '--diagnostic-level=warn',
  ])
  return report('biome', r.status === 0, r.stdout + r.stderr)
}

function clangFormat() {
  const version = Number(/version (\d+)/.exec(probe('clang-format', ['--version']).stdout)?.[1] ?? 0)
  if (version === 0) return report('clang-format', false, 'clang-format is not installed\n  Mend: npm run setup -- --test')
  const generated = (f) => readFileSync(path.join(root, f), 'utf8').startsWith('// Generated')
  const files = filesUnder('native').filter((f) => /\.(cc|h|cu|cuh)$/.test(f) && !generated(f))
  const r = probe('clang-format', fix ? ['-i', ...files] : ['--dry-run', '-Werror', '--ferror-limit=5', ...files])
  const note = version === CLANG_FORMAT ? '' : `\n(this is clang-format ${version}; the tree is formatted with ${CLANG_FORMAT})`
  return report('clang-format', r.status === 0, `${r.stderr}${note}\n  Mend: npm run format`)
}

function generated() {
  const r = probe(process.execPath, ['scripts/gen-op-table.mjs', ...(fix ? [] : ['--check'])])
  return report('generated op table', r.status === 0, `${r.stdout}${r.stderr}\n  Mend: npm run format`)
}

function borders() {
  const broken = []
  for (const file of [...filesUnder('native'), ...filesUnder('ts')].filter((f) => /\.(cc|h|ts)$/.test(f))) {
    const rules = BORDERS.filter((b) => b.files(file))
    if (rules.length === 0) continue
    readFileSync(path.join(root, file), 'utf8')
      .split('\n')
      .forEach((line, i) => {
        if (/^\s*(\/\/|\*|\/\*)/.test(line)) return
        for (const rule of rules) if (rule.pattern.test(line)) broken.push(`${file}:${i + 1}: ${rule.why}\n    ${line.trim()}`)
      })
  }
  return report('borders', broken.length === 0, broken.join('\n'))
}

/** Every error code has one row in docs/troubleshooting.md, with the exit code of ts/cli/exit.ts. */
function documentedCodes() {
  const text = (f) => readFileSync(path.join(root, f), 'utf8')
  const codes = [...text('ts/errors.ts').matchAll(/^ {2}\| '(EFF_\w+)'$/gm)].map((m) => m[1])
  const numbers = Object.fromEntries([...text('ts/cli/exit.ts').matchAll(/^ {2}(\w+): (\d+),$/gm)].map((m) => [m[1], m[2]]))
  const exits = Object.fromEntries(
    [...text('ts/cli/exit.ts').matchAll(/^ {2}(EFF_\w+): EXIT\.(\w+),$/gm)].map((m) => [m[1], numbers[m[2]]]),
  )
  const rows = [...text('docs/troubleshooting.md').matchAll(/^\| ((?:`EFF_\w+`(?:, )?)+) \| (\d+) \|/gm)]
  const documented = rows.flatMap((m) => [...m[1].matchAll(/EFF_\w+/g)].map(([code]) => ({ code, exit: m[2] })))
  const problems = [
    ...codes
      .filter((c) => documented.filter((d) => d.code === c).length !== 1)
      .map((c) => `${c}: not exactly one row in docs/troubleshooting.md`),
    ...documented.filter((d) => !codes.includes(d.code)).map((d) => `${d.code}: documented, but not in ts/errors.ts`),
    ...documented
      .filter((d) => exits[d.code] !== d.exit)
      .map((d) => `${d.code}: exit code ${exits[d.code]}, documented as ${d.exit}`),
  ]
  return report('documented error codes', codes.length > 0 && problems.length === 0, problems.join('\n'))
}

const results = [generated(), biome(), clangFormat(), borders(), documentedCodes()]
process.exitCode = results.every(Boolean) ? 0 : 1
