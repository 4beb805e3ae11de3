/** What a verb is given: its validated options, the words left over, the streams and the console. */
import type { Io } from './io.js'
import type { OptionTable, Values, VerbDef } from './options.js'
import type { Ui } from './ui.js'

export interface Call<T extends OptionTable> {
  options: Values<T>
  /** Of the options those that the command line has; the environment gave others. */
  given: ReadonlySet<keyof T & string>
  args: string[]
  io: Io
  ui: Ui
}

export interface Verb<T extends OptionTable = OptionTable> {
  def: VerbDef<T>
  /** Returns the exit code; throws what should be told as an error. */
  run(call: Call<T>): Promise<number>
}

/** Checks a verb's types and forgets them, for the table of verbs. */
export const defineVerb = <T extends OptionTable>(def: VerbDef<T>, run: (call: Call<T>) => Promise<number>): Verb =>
  ({ def, run }) as unknown as Verb
