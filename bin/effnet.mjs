#!/usr/bin/env node
import { existsSync } from 'node:fs'
import module from 'node:module'

module.enableCompileCache?.()
const entry = new URL('../dist/cli/main.js', import.meta.url)
if (existsSync(entry)) {
  // A run that is told to stop while the rest loads ends as one told later.
  if (process.argv[2] === 'train') (await import('../dist/cli/signals.js')).holdSignals()
  const { main } = await import(entry.href)
  process.exitCode = await main(process.argv.slice(2))
} else {
  process.stderr.write('EFF_BACKEND_MISSING  this checkout is not built: dist/cli/main.js is missing\n  Mend: npm run setup\n')
  process.exitCode = 69
}
