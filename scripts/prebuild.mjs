#!/usr/bin/env node
/**
 * `npm pack` runs this: the built addon, the CUDA backend, and the libraries beside them go to prebuilds/<platform>-<arch>, with their
 * licences, and what they are built for (build.json). Refused where the backend is not a release's.
 *
 *   --for-this-machine  packs the backend that there is, or none; build.json says so (then `npm pack --ignore-scripts`)
 */
import { copyFileSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { nativeCurrent, tsCurrent } from './lib/build.mjs'
import { ONEDNN_DIR } from './lib/onednn.mjs'
import { builtCuda, lacksForRelease, RELEASE_SETUP } from './lib/release.mjs'
import { fail, probe, root, SetupError, say } from './lib/run.mjs'

function options() {
  try {
    return parseArgs({ options: { 'for-this-machine': { type: 'boolean', default: false } } }).values
  } catch (e) {
    throw new SetupError(e.message, 'node scripts/prebuild.mjs [--for-this-machine]', 64)
  }
}

function prebuild() {
  const forThisMachine = options()['for-this-machine']
  if (!nativeCurrent(false) || !tsCurrent()) throw new SetupError('the build is not current', 'npm run setup')
  const from = path.join(root, 'build/Release')
  const to = path.join(root, 'prebuilds', `${process.platform}-${process.arch}`)
  // A pack that is refused leaves none of an earlier one.
  rmSync(to, { recursive: true, force: true })
  const built = builtCuda(from)
  const lacks = lacksForRelease(built)
  if (lacks && !forThisMachine)
    throw new SetupError(
      `this build is for some machines only: ${lacks}`,
      `${RELEASE_SETUP}; or pack it as it is: node scripts/prebuild.mjs --for-this-machine && npm pack --ignore-scripts`,
    )
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
  writeFileSync(path.join(to, 'build.json'), `${JSON.stringify({ ...built, release: lacks === '', lacks }, null, 2)}\n`)
  say('pack', `${path.relative(root, to)}${lacks ? ` (not for a release: ${lacks})` : ''}: ${readdirSync(to).join(', ')}`)
}

try {
  prebuild()
} catch (e) {
  fail(e)
}
