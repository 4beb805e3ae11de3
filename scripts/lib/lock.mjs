/**
 * One process at a time builds in a checkout: two would write the same build tree, dist/ and stamps. Who does listens on a socket that
 * has a name but no file, so that the system takes it away with the process, however that ends: there is no lock to be left behind.
 * (Its name is one of this machine, or container: two of those on one checkout do not see each other.)
 */
import { createHash } from 'node:crypto'
import { statSync } from 'node:fs'
import net from 'node:net'
import { root, say } from './run.mjs'

/** Of the folder itself: it may be reached by several paths, and another may lie at this path elsewhere. */
function socketName() {
  const { dev, ino } = statSync(root, { bigint: true })
  return `\0effnet-native-${createHash('sha256').update(`${dev}:${ino}`).digest('hex').slice(0, 32)}`
}

/** The server that holds the lock; undefined where another process has it. */
function listen(name) {
  const waiting = new Set()
  const server = net.createServer((socket) => {
    waiting.add(socket)
    socket.on('error', () => {})
    socket.on('close', () => waiting.delete(socket))
    socket.write(String(process.pid))
    socket.unref()
  })
  return new Promise((resolve, reject) => {
    server.once('error', (e) => (e.code === 'EADDRINUSE' ? resolve(undefined) : reject(e)))
    server.listen(name, () => {
      server.unref()
      resolve({
        release: () => {
          server.close()
          for (const socket of waiting) socket.destroy()
        },
      })
    })
  })
}

/** Until the process that has the lock gives it back or ends. */
const holderGone = (name, told) =>
  new Promise((resolve) => {
    const socket = net.connect(name)
    socket.on('data', (pid) => told(pid.toString()))
    // Another error than that nobody listens would come again at once.
    let wait = 0
    socket.on('error', ({ code }) => {
      wait = code === 'ECONNREFUSED' ? 0 : 200
    })
    socket.on('close', () => setTimeout(resolve, wait))
  })

/** Runs `work` while no other process runs such work in this checkout; waits for one that does, and says so. */
export async function alone(work) {
  const name = socketName()
  const told = new Set()
  for (;;) {
    const lock = await listen(name)
    if (lock) {
      try {
        return await work()
      } finally {
        lock.release()
      }
    }
    await holderGone(name, (pid) => {
      if (!told.has(pid)) say('setup', `process ${pid} is building in this checkout: waiting for it`)
      told.add(pid)
    })
  }
}
