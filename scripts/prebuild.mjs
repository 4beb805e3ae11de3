#!/usr/bin/env node
/** `npm pack` runs this: the built addon, the CUDA backend where there is one, and the libraries beside them go to prebuilds/<platform>-<arch>, with their licences. */
import { copyFileSync, mkdirSync, readdirSync, rmSync } from 'node:fs'
import path from 'node:path'
import { nativeCurrent, tsCurrent } from './lib/build.mjs'
import { ONEDNN_DIR } from './lib/onednn.mjs'
import { fail, probe, root, SetupError, say } from './lib/run.mjs'

function prebuild() {
  if (!nativeCurrent(false) || !tsCurrent()) throw new SetupError('the build is not current', 'npm run setup')
  const from = path.join(root, 'build/Release')
  const to = path.join(root, 'prebuilds', `${process.platform}-${process.arch}`)
  rmSync(to, { recursive: true, force: true })
  mkdirSync(to, { recursive: true })
  const files = readdirSync(from).filter(
    (f) => f === 'effnet.node' || f === 'effnet_cuda.so' || /^lib(hwy|effnet_dnnl)\.so\.\d+$/.test(f),
  )
  for (const f of files) copyFileSync(path.join(from, f), path.join(to, f))
  for (const f of ['LICENSE', 'THIRD-PARTY-PROGRAMS']) copyFileSync(path.join(ONEDNN_DIR, f), path.join(to, `oneDNN-${f}`))
  // The CUDA backend is beside the addon, which looks for it there, where it was built.
  const ours = files.filter((f) => f.startsWith('effnet')).map((f) => path.join(to, f))
  const strip = probe('strip', ['--strip-unneeded', ...ours])
  if (strip.status !== 0) throw new SetupError(`strip failed: ${strip.stderr.trim()}`)
  say('pack', `${path.relative(root, to)}: ${readdirSync(to).join(', ')}`)
}

try {
  prebuild()
} catch (e) {
  fail(e)
}
