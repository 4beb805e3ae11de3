#!/usr/bin/env node
/**
 * `npm run sanitize -- KIND [TEST...]`: the native code under a sanitizer, in a build tree of its own. Any finding is a failure.
 *
 *   address    the native tests under AddressSanitizer (leaks too) and UndefinedBehaviorSanitizer
 *   thread     the native tests under ThreadSanitizer
 *   cuda       the CUDA kernels, emulated, under all three: what CI runs (native/cuda/device/emulation.h)
 *   fuzz       mutated plans, tensor transfers and images (native/fuzz) under the first two
 *   libfuzzer  the same guided by coverage, where clang is installed (apt-get install clang-16 libclang-rt-16-dev)
 *
 * TEST names tests (bn_test) or targets (plan, transfer, image); default all.
 *   --runs N (fuzz; default 1000000)   --seed N (fuzz; default 1)   --seconds N (libfuzzer, each target; default 60)   --jobs N
 *   --short (cuda): AddressSanitizer too sees a kernel on few shapes; without it, on all
 *
 * Emulated kernels take one order of their threads under AddressSanitizer, and under ThreadSanitizer two, on the first shape
 * of a test program that brings a kernel, one block or several, and its operands: races lie in a kernel's text. All orders and shapes
 * are the plain tests' matter, which compare results. EFFNET_RUNS_OF_A_FORM=N asks for more shapes. A kernel that no
 * test ran in any type is a failure.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { defaultJobs } from './lib/build.mjs'
import { recordStage } from './lib/results.mjs'
import { cache, elapsed, fail, probe, root, run, SetupError, say } from './lib/run.mjs'

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    runs: { type: 'string', default: '1000000' },
    seed: { type: 'string', default: '1' },
    seconds: { type: 'string', default: '60' },
    jobs: { type: 'string' },
    short: { type: 'boolean', default: false },
  },
})
const [kind, ...names] = positionals
const jobs = values.jobs ?? String(defaultJobs())
const TARGETS = ['plan', 'transfer', 'image']

// float-cast-overflow: numbers of a file become integers in many places; that an out-of-range one does is no luck.
const ADDRESS = 'address,undefined,float-cast-overflow'
const suppressions = path.join(root, 'native/tests/suppressions')
const env = {
  ASAN_OPTIONS:
    'detect_stack_use_after_return=1:detect_leaks=1:handle_abort=1:allocator_may_return_null=1:strict_string_checks=1',
  // Aborting goes through AddressSanitizer, and so the driver keeps the input.
  UBSAN_OPTIONS: 'print_stacktrace=1:abort_on_error=1',
  TSAN_OPTIONS: `suppressions=${suppressions}/tsan.txt:second_deadlock_stack=1:history_size=4`,
}

async function build(folder, options, targets) {
  const at = path.join(root, folder)
  const definitions = ['-DCMAKE_BUILD_TYPE=Debug', '-DEFFNET_ADDON=OFF', ...options]
  await run('configure', 'cmake', ['-S', root, '-B', at, '-G', 'Ninja', ...definitions], { mend: 'npm run setup -- --test' })
  const wanted = targets.flatMap((t) => ['--target', t])
  await run('build', 'cmake', ['--build', at, '-j', jobs, ...wanted], { mend: 'the compiler output above names the file' })
  say('build', `${folder} is current`)
  return at
}

const FINDING = /ERROR: (?:Address|Leak)Sanitizer: .*|WARNING: ThreadSanitizer: .*|\S+: runtime error: .*/g

/** Every test program once (and on the lower instruction sets that it has runs for): a row each, findings below. */
async function tests(folder, options, wanted = names, more = {}) {
  const at = await build(folder, ['-DEFFNET_TESTS=ON', ...options], wanted)
  const junit = path.join(cache, `logs/${folder}.xml`)
  rmSync(junit, { force: true })
  const filter = wanted.length > 0 ? ['-R', `^(${wanted.join('|')})(_avx2|_avx3(_bf16)?)?$`] : []
  const args = ['--test-dir', at, '-j', jobs, '--timeout', '1800', '--no-tests=error', '--output-junit', junit, ...filter]
  // ThreadSanitizer knows one layout of memory: without randomisation where a process may ask for that.
  const command = probe('setarch', ['-R', 'true']).status === 0 ? ['setarch', '-R', 'ctest', ...args] : ['ctest', ...args]
  const { status } = probe(command[0], command.slice(1), { env: { ...process.env, ...env, ...more }, maxBuffer: 1 << 28 })
  if (!existsSync(junit)) throw new SetupError(`ctest ended with ${status} and wrote no report`)
  let failed = 0
  for (const [, name, seconds, state, rest] of readFileSync(junit, 'utf8').matchAll(
    /<testcase name="([^"]+)"[^>]*time="([^"]+)" status="([^"]+)">([\s\S]*?)<\/testcase>/g,
  )) {
    const found = [...new Set(rest.replaceAll('&quot;', '"').match(FINDING))]
    const ok = state === 'run' && found.length === 0
    if (!ok) failed++
    process.stdout.write(`${name.padEnd(28)}${ok ? 'clean' : 'FAILED'.padEnd(5)}${Number(seconds).toFixed(1).padStart(9)} s\n`)
    if (!ok) process.stdout.write(`${found.map((f) => `  ${f}\n`).join('')}${found.length === 0 ? rest.slice(-2000) : ''}\n`)
  }
  if (status !== 0 && failed === 0) failed = 1
  return failed
}

// The kernels' own tests, from the list that CMake has.
function kernelTests() {
  const list = /set\(CUDA_KERNEL_TESTS ([^)]+)\)/.exec(readFileSync(path.join(root, 'CMakeLists.txt'), 'utf8'))[1]
  return [
    'cuda_emulation_test',
    ...list
      .trim()
      .split(/\s+/)
      .map((name) => `cuda_${name}_test`),
  ]
}

async function kernels(folder, options, { leftOut = {}, more = {} } = {}) {
  const wanted = names.length > 0 ? names : kernelTests().filter((name) => !(name in leftOut))
  const ran = path.join(cache, `logs/${folder}.kernels.txt`)
  rmSync(ran, { force: true })
  let failed = await tests(folder, options, wanted, { EFFNET_KERNELS_RUN: ran, ...more })
  if (names.length > 0) return failed
  const all = Object.keys(JSON.parse(readFileSync(path.join(root, 'native/cuda/budgets.json'), 'utf8')).sm_90a)
  const text = (name) => name.replace(/(_(f32|tf32|bf16|f16))+$/, '')
  const found = new Set(existsSync(ran) ? readFileSync(ran, 'utf8').split('\n').map(text) : [])
  const ofLeftOut = 'cuda_resample_test' in leftOut ? /^resample_/ : /^$/
  const missing = all.filter((name) => !found.has(text(name)) && !ofLeftOut.test(name))
  if (missing.length > 0) failed++
  process.stdout.write(
    `kernels run, in some type: ${all.length - missing.length} of ${all.length}${missing.map((n) => `\n  not ${n}`).join('')}\n`,
  )
  return failed
}

function targetsOf(list) {
  const unknown = list.find((name) => !TARGETS.includes(name))
  if (unknown) throw new SetupError(`${unknown}: there are ${TARGETS.join(', ')}`, undefined, 64)
  return list.length > 0 ? list : TARGETS
}

async function fuzz(folder, options, argsOf) {
  const targets = targetsOf(names)
  const programs = targets.map((t) => `fuzz_${t}`)
  const at = await build(folder, ['-DEFFNET_FUZZ=ON', ...options], programs)
  const work = path.join(cache, 'fuzz')
  let failed = 0
  for (const target of targets) {
    const kept = path.join(work, target)
    mkdirSync(kept, { recursive: true })
    const args = argsOf(kept, path.join(root, 'native/fuzz/corpus', target))
    say('fuzz', `${path.relative(root, at)}/fuzz_${target} ${args.map((a) => path.relative(root, a) && a).join(' ')}`)
    const r = probe(path.join(at, `fuzz_${target}`), args, { cwd: kept, env: { ...process.env, ...env }, maxBuffer: 1 << 28 })
    const last = (r.stdout + r.stderr).trimEnd().split('\n')
    if (r.status === 0) {
      process.stdout.write(
        `${target.padEnd(10)}clean   ${last.findLast((l) => l.startsWith('{') || l.startsWith('Done')) ?? ''}\n`,
      )
      continue
    }
    failed++
    process.stdout.write(
      `${target.padEnd(10)}FAILED  ${readdirSync(kept)
        .filter((f) => f.startsWith('crash-'))
        .join(' ')} in ${kept}\n`,
    )
    process.stdout.write(`${last.slice(-60).join('\n')}\n`)
  }
  return failed
}

function clang() {
  for (const version of ['', '-19', '-18', '-17', '-16', '-15', '-14'])
    if (probe(`clang++${version}`, ['--version']).status === 0) return version
  throw new SetupError('libfuzzer needs clang', 'apt-get install clang-16 libclang-rt-16-dev', 69)
}

const kinds = {
  address: () => tests('build-asan', [`-DEFFNET_SANITIZE=${ADDRESS}`]),
  thread: () => tests('build-tsan', ['-DEFFNET_SANITIZE=thread']),
  cuda: async () => {
    const leftOut = {
      cuda_large_test: 'tensors of gigabytes take minutes; its kernels run in the other tests',
      ...(values.short && { cuda_resample_test: "needs the CPU's image code; `npm run sanitize -- cuda` has it" }),
    }
    const address = await kernels('build-asan', [`-DEFFNET_SANITIZE=${ADDRESS}`], {
      ...(values.short && { leftOut, more: { EFFNET_RUNS_OF_A_FORM: '1' } }),
    })
    const thread = await kernels('build-tsan', ['-DEFFNET_SANITIZE=thread'], { leftOut })
    recordStage('sanitize', address + thread === 0)
    return address + thread
  },
  // Binding and running take a hundred times as long as verifying: of accepted plans one in sixteen goes all the way.
  fuzz: () =>
    fuzz('build-asan', [`-DEFFNET_SANITIZE=${ADDRESS}`], (_, corpus) => [
      `-runs=${values.runs}`,
      `-seed=${values.seed}`,
      '-bind_one_of=16',
      corpus,
    ]),
  libfuzzer: () => {
    const version = clang()
    const compilers = [`-DCMAKE_C_COMPILER=clang${version}`, `-DCMAKE_CXX_COMPILER=clang++${version}`]
    return fuzz('build-libfuzzer', [...compilers, `-DEFFNET_SANITIZE=${ADDRESS}`], (kept, corpus) => [
      `-max_total_time=${values.seconds}`,
      '-timeout=20',
      '-rss_limit_mb=4096',
      '-print_final_stats=1',
      kept,
      corpus,
    ])
  },
}

async function main() {
  if (!(kind in kinds)) throw new SetupError(`npm run sanitize -- ${Object.keys(kinds).join('|')} [TEST...]`, undefined, 64)
  const failed = await kinds[kind]()
  process.stdout.write(`${kind}: ${failed === 0 ? 'clean' : `${failed} with findings`} (${elapsed()})\n`)
  process.exitCode = failed === 0 ? 0 : 1
}

main().catch(fail)
