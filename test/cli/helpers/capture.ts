/** Runs the command line in this process with captured streams. */
import { main } from '../../../ts/cli/main.js'

export interface Captured {
  code: number
  stdout: string
  stderr: string
  /** Lines of stdout as JSON; throws where one is not. */
  json(): Record<string, unknown>[]
}

export interface CaptureOptions {
  env?: Record<string, string>
  tty?: boolean
  columns?: number
}

export class StringSink {
  text = ''
  constructor(
    readonly isTTY = false,
    readonly columns = 80,
    readonly closed = false,
  ) {}
  write(text: string): void {
    this.text += text
  }
  async flushed(): Promise<void> {}
}

export async function effnet(argv: readonly string[], options: CaptureOptions = {}): Promise<Captured> {
  const stdout = new StringSink(options.tty, options.columns)
  const stderr = new StringSink(options.tty, options.columns)
  const code = await main(argv, { stdout, stderr, env: options.env ?? {} })
  const json = () =>
    stdout.text
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => JSON.parse(line) as Record<string, unknown>)
  return { code, stdout: stdout.text, stderr: stderr.text, json }
}
