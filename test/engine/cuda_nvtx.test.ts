/** The ranges that a profiler sees, by a library that is injected as a profiler's (native/cuda/fake/fake_nvtx.cc). */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterAll, expect, it } from 'vitest'
import { describeWith, FAKE_DRIVER } from '../helpers/stand_in.js'

const scratch = mkdtempSync(path.join(os.tmpdir(), 'effnet-nvtx-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

describeWith(FAKE_DRIVER, 'NVTX ranges', () => {
  it('are the plan’s ops where it runs op by op, and its parts where graphs are replayed', () => {
    const log = path.join(scratch, 'ranges')
    const index = JSON.stringify(pathToFileURL(path.resolve('dist/index.js')).href)
    // Prints the ops of the plan; the last two steps are a replay and a profiled one.
    const body = `(async () => {
      const { createModel } = await import(${index})
      const { appendFileSync } = await import('node:fs')
      const mark = (text) => appendFileSync(process.env.FAKE_NVTX_LOG, text + '\\n')
      const model = await createModel('efficientnet_b0', { numClasses: 5, device: 'cuda' })
      const plan = await model.session.evalPlan({ batchSize: 1, imageSize: 32 })
      const input = plan.packInput(new Uint8Array(32 * 32 * 3))
      await plan.run(input)
      mark('replay')
      await plan.run(input)
      mark('profiled')
      plan.profile(true)
      await plan.run(input)
      process.stdout.write(JSON.stringify(plan.dump().map(({ name, life }) => ({ name, life }))))
      await model.close()
    })()`
    const out = execFileSync(process.execPath, ['-e', body], {
      encoding: 'utf8',
      env: {
        ...process.env,
        EFFNET_LIB_DIR: FAKE_DRIVER.folder,
        NVTX_INJECTION64_PATH: path.join(FAKE_DRIVER.folder, 'libnvtx.so.3'),
        FAKE_NVTX_LOG: log,
      },
    })
    const ops = JSON.parse(out) as { name: string; life: string }[]
    const lines = readFileSync(log, 'utf8').trim().split('\n')
    const [replay, profiled] = [lines.indexOf('replay'), lines.indexOf('profiled')]
    expect(lines.slice(replay + 1, profiled)).toEqual(['push step', 'pop'])
    const stepOps = ops.filter(({ life }) => life !== 'prepared').flatMap(({ name }) => [`push ${name}`, 'pop'])
    expect(stepOps.length).toBeGreaterThan(100)
    expect(lines.slice(profiled + 1)).toEqual(['push profiled step', ...stepOps, 'pop'])
    // Folding BN into weights is a part of its own.
    expect(lines[0]).toBe('push prepare')
  }, 120_000)
})
