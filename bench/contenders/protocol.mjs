/** The line protocol of bench/lib/contender.mjs for contenders that run in Node. */
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'

export const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`)

/** Highest resident memory of this process so far. */
export const peakBytes = () => Number(/^VmHWM:\s+(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]) * 1024

/**
 * Warms up, says ready, then times as many steps of `images` images as each line of stdin asks for, each time after `prime`
 * untimed ones: they take what was prefetched while others had their turn.
 */
export async function serve(step, { images, versions = {}, warmup, prime = 0 }) {
  for (let i = 0; i < warmup; i++) await step()
  say({ ready: versions })
  for await (const line of createInterface({ input: process.stdin })) {
    const steps = Number(line)
    for (let i = 0; i < prime; i++) await step()
    const begin = performance.now()
    for (let i = 0; i < steps; i++) await step()
    const seconds = (performance.now() - begin) / 1000
    say({ images: images * steps, seconds, peak_bytes: peakBytes() })
  }
}

/** Options as `--name value` pairs, numbers where they look like one. */
export function options() {
  const found = {}
  for (let i = 2; i < process.argv.length; i += 2) {
    const value = process.argv[i + 1]
    found[process.argv[i].slice(2)] = /^\d+$/.test(value) ? Number(value) : value
  }
  return found
}

/** xorshift32, so that every run sees the same numbers. */
export function randomSource(seed = 1) {
  let x = seed >>> 0 || 1
  return () => {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    return x >>> 0
  }
}
