/** Libraries and tools that their makers publish as Python wheels: downloaded at pinned versions and hashes, unpacked as archives. */
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { cache, probe, root, run, SetupError } from './run.mjs'
import { sha256File } from './stamp.mjs'

const downloads = path.join(cache, 'downloads')

/**
 * Puts every wheel ({ name, version, file, sha256 }) into .cache/downloads, where it is not there yet. `what`: who needs them;
 * `target`: pip's options for another Python than this machine's.
 * @throws SetupError with exit code 69
 */
export async function downloadWheels(what, wheels, target = []) {
  mkdirSync(downloads, { recursive: true })
  const present = (w) => existsSync(path.join(downloads, w.file)) && sha256File(path.join(downloads, w.file)) === w.sha256
  if (wheels.every(present)) return
  const requirements = path.join(downloads, `${what.toLowerCase()}-requirements.txt`)
  writeFileSync(requirements, wheels.map((w) => `${w.name}==${w.version} --hash=sha256:${w.sha256}\n`).join(''))
  const options = '--no-deps --only-binary=:all: --require-hashes --retries 5 --disable-pip-version-check --progress-bar off'
  const args = ['-m', 'pip', 'download', ...options.split(' '), ...target, '--dest', downloads, '-r', requirements]
  await run(what, 'python3', args, {
    mend: `check the network and proxy, then run again; or put ${wheels.map((w) => w.file).join(' and ')} into ${path.relative(root, downloads)}/`,
    exitCode: 69,
  })
  const bad = wheels.filter((w) => !present(w))
  if (bad.length > 0)
    throw new SetupError(
      `${what}: wrong checksum of ${bad.map((w) => w.file).join(', ')}`,
      `rm -r ${path.relative(root, downloads)} and run again`,
      69,
    )
}

/** Unpacks a downloaded wheel into `folder`. */
export function unpackWheel(what, wheel, folder) {
  tool(what, 'python3', ['-m', 'zipfile', '-e', path.join(downloads, wheel.file), folder])
}

/** Runs a tool that must succeed, with its own words in the error. */
export function tool(what, command, args) {
  const r = probe(command, args)
  if (r.status === 0) return
  const reason = r.stderr.trim() || `exit code ${r.status}`
  throw new SetupError(`${what}: ${command} ${args.join(' ')} failed: ${reason}`, undefined, 69)
}

/** A folder beside the cache's that this process alone fills, empty. */
export function workFolder(name) {
  const folder = path.join(cache, `${name}-${process.pid}`)
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  return folder
}
