/** Fault injection for the tests of crash safety: `EFFNET_FAULT=<point>[,<point>...]` kills the process there, as `kill -9` would. */
export function faultPoint(point: string): void {
  const wanted = process.env['EFFNET_FAULT']
  if (wanted === undefined || !wanted.split(',').includes(point)) return
  process.kill(process.pid, 'SIGKILL')
  // The signal is delivered while this waits; nothing after the point may run.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10_000)
}
