import { expect } from 'vitest'
import { type CaptureOptions, effnet } from './capture.js'

export interface Mistake {
  exit: number
  code: string
  /** In the message. */
  says: RegExp
  /** In the mend. */
  mend: RegExp
}

/** One message with the mend and no stack, the exit code, and the same as JSON. */
export async function expectMistake(argv: readonly string[], want: Mistake, options?: CaptureOptions): Promise<void> {
  const human = await effnet(argv, options)
  expect(human.stderr.split('\n')[0]).toMatch(new RegExp(`^${want.code} {2}\\S`))
  expect(human.stderr).toMatch(want.says)
  expect(human.stderr.split('Mend:')[1] ?? '').toMatch(want.mend)
  expect(human.stderr).not.toMatch(/^\s+at /m)
  expect(human.code).toBe(want.exit)
  const script = await effnet([...argv, '--json'], options)
  expect(script.code).toBe(want.exit)
  expect(script.json().at(-1)).toMatchObject({ error: { code: want.code, exit_code: want.exit } })
}

export const usage = (says: RegExp, mend: RegExp, code = 'EFF_CONFIG_VALUE'): Mistake => ({ exit: 64, code, says, mend })
