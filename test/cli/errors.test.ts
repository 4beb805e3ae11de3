/** Errors as people and schedulers see them. */
import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { describeError, errorObject, formatError } from '../../ts/cli/errors_ui.js'
import { exitCodeOf } from '../../ts/cli/exit.js'
import { main } from '../../ts/cli/main.js'
import { makePaint } from '../../ts/cli/ui.js'
import { EffnetError, type ErrorCode } from '../../ts/errors.js'
import { StringSink } from './helpers/capture.js'

const plain = makePaint(false)

describe('exit codes', () => {
  it.each([
    ['EFF_CONFIG_KEY', 64],
    ['EFF_CONFIG_VALUE', 64],
    ['EFF_MODEL_UNKNOWN', 64],
    ['EFF_DATA_DECODE', 65],
    ['EFF_DATA_LABEL', 65],
    ['EFF_WEIGHTS_SHAPE', 65],
    ['EFF_WEIGHTS_CORRUPT', 65],
    ['EFF_DATA_MISSING', 66],
    ['EFF_DATA_EMPTY', 66],
    ['EFF_WEIGHTS_MISSING', 66],
    ['EFF_CKPT_MISSING', 66],
    ['EFF_BACKEND_MISSING', 69],
    ['EFF_PRECISION', 69],
    ['EFF_NAN', 70],
    ['EFF_OOM', 71],
    ['EFF_RUN_EXISTS', 73],
    ['EFF_CKPT_NO_SPACE', 74],
    ['EFF_IO', 74],
    ['EFF_INTERNAL', 1],
    ['ENOENT', 66],
    ['EACCES', 77],
    ['EROFS', 73],
    ['ENOSPC', 74],
    ['ERR_SOMETHING', 1],
    [undefined, 1],
  ])('%s -> %i', (code, exit) => {
    expect(exitCodeOf(code)).toBe(exit)
  })

  it('exist for every error code', () => {
    const source = readFileSync(new URL('../../ts/errors.ts', import.meta.url), 'utf8')
    const table = readFileSync(new URL('../../ts/cli/exit.ts', import.meta.url), 'utf8')
    const codes = [...new Set(source.match(/'EFF_[A-Z_]+'/g))].map((c) => c.slice(1, -1))
    expect(codes.length).toBeGreaterThan(20)
    for (const code of codes) expect(table).toContain(`${code}: EXIT.`)
  })
})

describe('the text', () => {
  it('is code and what, then why, then the mend', () => {
    const error = new EffnetError(
      'EFF_WEIGHTS_SHAPE',
      'b0.safetensors: 2 tensors do not fit\n  a: [10] in the file, [1000] here',
      {
        hint: '--num-classes 10',
        cause: new Error('the classifier differs'),
      },
    )
    expect(formatError(describeError(error), plain, false)).toBe(
      [
        'EFF_WEIGHTS_SHAPE  b0.safetensors: 2 tensors do not fit',
        '  a: [10] in the file, [1000] here',
        '  the classifier differs',
        '  Mend: --num-classes 10',
        '',
      ].join('\n'),
    )
  })

  it('has a stack only when asked', () => {
    const general = new EffnetError('EFF_INVALID_ARGUMENT', 'x')
    expect(describeError(general, 'effnet', 'train').mend).toBe('effnet train --help tells what is accepted')
    expect(describeError(general).mend).toBe('effnet --help tells what is accepted')
    const described = describeError(new TypeError('x is not a function'))
    expect(described).toMatchObject({ code: 'EFF_INTERNAL', exitCode: 1 })
    expect(formatError(described, plain, false)).not.toContain('errors.test.ts')
    expect(formatError(described, plain, false)).toContain('effnet doctor')
    expect(formatError(described, plain, true)).toContain('errors.test.ts')
  })

  it('tells the mend of what the system refuses', () => {
    const error = Object.assign(new Error("EACCES: permission denied, mkdir '/x'"), { code: 'EACCES' })
    expect(describeError(error)).toMatchObject({ code: 'EACCES', exitCode: 77, mend: expect.stringContaining('access') })
  })

  it('is one object for scripts', () => {
    const object = errorObject(describeError(new EffnetError('EFF_DATA_MISSING' satisfies ErrorCode, 'no x', { hint: 'make x' })))
    expect(object).toEqual({ code: 'EFF_DATA_MISSING', message: 'no x', mend: 'make x', exit_code: 66 })
  })
})

describe('standard output that cannot be written', () => {
  it('is an I/O error, exit 74', async () => {
    const failure = new Error('ENOSPC: no space left on device, write')
    const stderr = new StringSink()
    const code = await main(['models', 'list'], { stdout: Object.assign(new StringSink(), { failure }), stderr, env: {} })
    expect(code).toBe(74)
    expect(stderr.text).toMatch(/^EFF_IO {2}standard output could not be written: ENOSPC/)
  })
})
