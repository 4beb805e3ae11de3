/** Two builds in one checkout: the second waits for the first, and for one that was killed not at all. */
import { spawn } from 'node:child_process'
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'

let dir
const running = new Set()
beforeEach(() => {
  dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-lock-'))
  cpSync('scripts', path.join(dir, 'scripts'), { recursive: true })
  for (const name of ['package.json', 'package-lock.json']) cpSync(name, path.join(dir, name))
})
afterEach(() => {
  for (const child of running) child.kill('SIGKILL')
  running.clear()
  rmSync(dir, { recursive: true, force: true })
})

function start(...args) {
  const child = spawn(process.execPath, args, { cwd: dir, stdio: ['ignore', 'pipe', 'pipe'] })
  running.add(child)
  let text = ''
  let wake = () => {}
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (chunk) => {
      text += chunk
      wake()
    })
  const ended = new Promise((resolve) => child.on('close', (code) => resolve({ code, text })))
  /** Once it has printed that. */
  const says = async (pattern) => {
    while (!pattern.test(text))
      await Promise.race([
        new Promise((resolve) => {
          wake = resolve
        }),
        ended.then(({ code }) => {
          if (!pattern.test(text)) throw new Error(`ended with ${code}: ${text}`)
        }),
      ])
  }
  return { child, ended, says }
}

/** Work that notes when it begins and ends, and lasts until the file `go` is there. */
const worker = (name) =>
  start(
    '--input-type=module',
    '-e',
    `import { appendFileSync, existsSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { alone } from './scripts/lib/lock.mjs'
await alone(async () => {
  appendFileSync('order', '${name} begins\\n')
  console.log('at work')
  while (!existsSync('go')) await setTimeout(10)
  appendFileSync('order', '${name} ends\\n')
})`,
  )
const order = () => readFileSync(path.join(dir, 'order'), 'utf8').trimEnd().split('\n')

describe('a second build in a checkout', () => {
  it('waits for the first and says for which process', async () => {
    const first = worker('first')
    await first.says(/at work/)
    const second = worker('second')
    await second.says(new RegExp(`process ${first.child.pid} is building in this checkout: waiting for it`))
    expect(order()).toEqual(['first begins'])
    cpSync('package.json', path.join(dir, 'go'))
    expect(await first.ended).toMatchObject({ code: 0 })
    expect(await second.ended).toMatchObject({ code: 0 })
    expect(order()).toEqual(['first begins', 'first ends', 'second begins', 'second ends'])
  })

  it('goes on at once after one that was killed', async () => {
    const first = worker('first')
    await first.says(/at work/)
    const second = worker('second')
    await second.says(/waiting for it/)
    first.child.kill('SIGKILL')
    await second.says(/at work/)
    cpSync('package.json', path.join(dir, 'go'))
    expect(await second.ended).toMatchObject({ code: 0 })
    expect(order()).toEqual(['first begins', 'second begins', 'second ends'])
  })

  it('is every setup and build', async () => {
    const first = worker('first')
    await first.says(/at work/)
    for (const args of [[], ['--build-only']]) {
      const setup = start('scripts/setup.mjs', ...args)
      await setup.says(/waiting for it/)
      setup.child.kill('SIGKILL')
      await setup.ended
    }
    // Nothing was looked at, or made, before it had the lock.
    expect(existsSync(path.join(dir, '.cache'))).toBe(false)
  })

  it('in another checkout goes on beside it', async () => {
    const first = worker('first')
    await first.says(/at work/)
    const here = dir
    dir = mkdtempSync(path.join(os.tmpdir(), 'effnet-lock-'))
    try {
      cpSync('scripts', path.join(dir, 'scripts'), { recursive: true })
      await worker('other').says(/at work/)
    } finally {
      rmSync(dir, { recursive: true, force: true })
      dir = here
    }
  })
})
