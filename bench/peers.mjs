#!/usr/bin/env node
/**
 * What the peers need, under .cache: a Python environment from contenders/py/requirements.txt, onnxruntime-node, and the models
 * as ONNX. Made once; `node bench/peers.mjs` makes it now. Never dependencies of the package.
 */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { cache, fail, probe, root, run, SetupError, say } from '../scripts/lib/run.mjs'
import { hashInputs, isCurrent, writeStamp } from '../scripts/lib/stamp.mjs'

const venv = path.join(cache, 'peers')
export const peerPython = path.join(venv, 'bin/python')
/** Where npm installed onnxruntime-node. */
export const peerNode = path.join(cache, 'peers-node')
export const onnxFolder = path.join(cache, 'peers-onnx')
const requirements = 'bench/contenders/py/requirements.txt'
const NODE_PACKAGES = ['onnxruntime-node@1.30.0']

async function ensurePython() {
  const inputs = hashInputs([requirements])
  if (isCurrent('peers', inputs, ['.cache/peers/bin/python'])) return
  if (!existsSync(peerPython)) {
    const made = probe('python3', ['-m', 'venv', venv])
    if (made.status !== 0)
      throw new SetupError(`python3 -m venv failed: ${made.stderr.trim()}`, 'apt-get install -y python3-venv', 69)
  }
  say('peers', 'installing PyTorch, timm and ONNX Runtime (about 6 GB on disk)')
  const args = ['-m', 'pip', 'install', '--no-cache-dir', '--progress-bar', 'off', '-r', path.join(root, requirements)]
  await run('peers', peerPython, args, {
    mend: 'check the network and the free disk space (6 GB), then run again',
    exitCode: 69,
  })
  writeStamp('peers', inputs)
  say('peers', 'ready')
}

async function ensureNode() {
  const inputs = hashInputs([], NODE_PACKAGES)
  if (isCurrent('peers-node', inputs, ['.cache/peers-node/node_modules/onnxruntime-node'])) return
  mkdirSync(peerNode, { recursive: true })
  writeFileSync(path.join(peerNode, 'package.json'), '{ "private": true }\n')
  // Its install script only fetches CUDA libraries.
  const args = ['install', '--prefix', peerNode, '--ignore-scripts', '--no-audit', '--no-fund', ...NODE_PACKAGES]
  await run('peers-node', 'npm', args, { mend: 'check the network, then run again', exitCode: 69 })
  writeStamp('peers-node', inputs)
}

/** Everything that the contenders `who` need. */
export async function ensurePeers(who) {
  if (who.some((w) => ['torch', 'torch_data', 'ort', 'ort_node'].includes(w))) await ensurePython()
  if (who.includes('ort_node')) await ensureNode()
}

/** The ONNX file of a model, exported by the Python contender when it is missing. */
export async function ensureOnnx(model, imageSize) {
  if (existsSync(path.join(onnxFolder, `${model}-${imageSize}.onnx`))) return
  say('peers', `exporting ${model} at ${imageSize} px to ONNX`)
  const script = path.join(root, 'bench/contenders/py/ort_cpu.py')
  const args = ['-B', script, '--model', model, '--image-size', String(imageSize), '--cache', onnxFolder]
  await run('peers-onnx', peerPython, args, { exitCode: 70 })
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  Promise.all([ensurePython(), ensureNode()]).catch(fail)
}
