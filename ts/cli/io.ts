/** The streams and the environment of one command, so that tests can capture what a run of the CLI prints. */
export interface Sink {
  write(text: string): void
  readonly isTTY: boolean
  /** Width in characters; 80 where unknown. */
  readonly columns: number
  /** The reader has gone (`effnet ... | head`): nothing more is written. */
  readonly closed: boolean
}

export interface Io {
  readonly stdout: Sink
  readonly stderr: Sink
  readonly env: Readonly<Record<string, string | undefined>>
}

const sinks = new WeakMap<NodeJS.WriteStream, Sink>()

/**
 * A process stream that outlives its reader: Node ignores SIGPIPE and reports EPIPE (EIO of a closed terminal), which must not end a training
 * run because the pager it was piped to was closed.
 */
function processSink(stream: NodeJS.WriteStream): Sink {
  const known = sinks.get(stream)
  if (known) return known
  let closed = false
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE' && error.code !== 'EIO') throw error
    closed = true
  })
  const sink: Sink = {
    write(text) {
      if (!closed) stream.write(text)
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
  }
  sinks.set(stream, sink)
  return sink
}

export const processIo = (): Io => ({
  stdout: processSink(process.stdout),
  stderr: processSink(process.stderr),
  env: process.env,
})
