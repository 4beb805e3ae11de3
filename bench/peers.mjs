#!/usr/bin/env node
/** The peers' Python environment, .cache/peers: made once from bench/peers/requirements.txt. `node bench/peers.mjs` makes it now. */
import { existsSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { cache, fail, probe, root, run, SetupError, say } from '../scripts/lib/run.mjs'
import { hashInputs, isCurrent, writeStamp } from '../scripts/lib/stamp.mjs'

const venv = path.join(cache, 'peers')
export const peerPython = path.join(venv, 'bin/python')
export const onnxCache = path.join(cache, 'peers-onnx')
const inputs = ['bench/peers/requirements.txt']

export const peersReady = () => isCurrent('peers', hashInputs(inputs), ['.cache/peers/bin/python'])

export async function ensurePeers() {
  if (peersReady()) return
  if (!existsSync(peerPython)) {
    const made = probe('python3', ['-m', 'venv', venv])
    if (made.status !== 0)
      throw new SetupError(`python3 -m venv failed: ${made.stderr.trim()}`, 'apt-get install -y python3-venv', 69)
  }
  say('peers', 'installing PyTorch, timm and ONNX Runtime (about 6 GB on disk)')
  await run(
    'peers',
    peerPython,
    ['-m', 'pip', 'install', '--no-cache-dir', '--progress-bar', 'off', '-r', path.join(root, inputs[0])],
    {
      mend: 'check the network and the free disk space (6 GB), then run again',
      exitCode: 69,
    },
  )
  writeStamp('peers', hashInputs(inputs))
  say('peers', 'ready')
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) ensurePeers().catch(fail)
