/** The streams and the environment of one command, so that tests can capture what a run of the CLI prints. */
export interface Sink {
  write(text: string): void
  readonly isTTY: boolean
  /** Width in characters; 80 where unknown. */
  readonly columns: number
  /** The reader has gone (`effnet ... | head`): nothing more is written. */
  readonly closed: boolean
  /** Why nothing more could be written, where it was not the reader who left: a full disk, say. */
  readonly failure?: Error | undefined
  /** Settles when what was written has gone out, or cannot. */
  flushed(): Promise<void>
}

export interface Io {
  readonly stdout: Sink
  readonly stderr: Sink
  readonly env: Readonly<Record<string, string | undefined>>
}

const sinks = new WeakMap<NodeJS.WriteStream, Sink>()

/**
 * A process stream that outlives its reader: Node ignores SIGPIPE and reports EPIPE (of a closed terminal: EIO), and a closed
 * pager must not end a training run.
 */
function processSink(stream: NodeJS.WriteStream): Sink {
  const known = sinks.get(stream)
  if (known) return known
  let closed = false
  let failure: Error | undefined
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE' && error.code !== 'EIO') failure ??= error
    closed = true
  })
  const sink: Sink = {
    write(text) {
      if (!closed) stream.write(text)
    },
    flushed() {
      return new Promise((resolve) => {
        if (closed) resolve()
        else stream.write('', () => resolve())
      })
    },
    get isTTY() {
      return stream.isTTY === true
    },
    get columns() {
      return stream.columns || 80
    },
    get closed() {
      return closed
    },
    get failure() {
      return failure
    },
  }
  sinks.set(stream, sink)
  return sink
}

export const processIo = (): Io => ({
  stdout: processSink(process.stdout),
  stderr: processSink(process.stderr),
  env: process.env,
})
