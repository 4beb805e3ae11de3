import { accessSync, constants } from 'node:fs'
import path from 'node:path'
import type { Io } from './io.js'

/**
 * How this command line is called from here: `npx effnet` when npx started it (it puts `node_modules/.bin` on the PATH for the
 * command alone) or where the PATH has no `effnet`.
 */
export function programName(env: Io['env']): string {
  if (env['npm_command'] === 'exec') return 'npx effnet'
  for (const dir of (env['PATH'] ?? '').split(path.delimiter)) {
    if (dir === '') continue
    try {
      accessSync(path.join(dir, 'effnet'), constants.X_OK)
      return 'effnet'
    } catch {
      // not in this folder
    }
  }
  return 'npx effnet'
}
