/**
 * Every error this package throws on purpose. `code` is stable and documented, `hint` says the mend, `details` is plain
 * data. The command line turns a code into an exit code (see `ts/cli/exit.ts`).
 */
export type ErrorCode =
  | 'EFF_CONFIG_KEY'
  | 'EFF_CONFIG_VALUE'
  | 'EFF_DATA_MISSING'
  | 'EFF_DATA_EMPTY'
  | 'EFF_DATA_DECODE'
  | 'EFF_DATA_LIMIT'
  | 'EFF_DATA_LABEL'
  | 'EFF_DATA_STALLED'
  | 'EFF_WEIGHTS_MISSING'
  | 'EFF_WEIGHTS_SHAPE'
  | 'EFF_WEIGHTS_CORRUPT'
  | 'EFF_CKPT_VERSION'
  | 'EFF_CKPT_CORRUPT'
  | 'EFF_CKPT_NO_SPACE'
  | 'EFF_CKPT_MISSING'
  | 'EFF_RUN_EXISTS'
  | 'EFF_BACKEND_MISSING'
  | 'EFF_GPU_FAULT'
  | 'EFF_CPU_UNSUPPORTED'
  | 'EFF_PRECISION'
  | 'EFF_OOM'
  | 'EFF_NAN'
  | 'EFF_IO'
  | 'EFF_PLAN_INVALID'
  | 'EFF_MODEL_UNKNOWN'
  | 'EFF_INVALID_ARGUMENT'
  | 'EFF_CLOSED'
  | 'EFF_ABORTED'
  | 'EFF_INTERNAL'

export interface EffnetErrorOptions {
  /** What to do, as a command or an option. */
  hint?: string
  details?: Record<string, unknown>
  cause?: unknown
}

/** `import` and `require` in one process make a class each: what either makes is an EffnetError to both. */
const MARK = Symbol.for('effnet-native.EffnetError')

export class EffnetError extends Error {
  readonly code: ErrorCode
  readonly hint: string | undefined
  readonly details: Readonly<Record<string, unknown>>

  constructor(code: ErrorCode, message: string, options: EffnetErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'EffnetError'
    this.code = code
    this.hint = options.hint
    this.details = options.details ?? {}
  }
}

Object.defineProperty(EffnetError.prototype, MARK, { value: true })
Object.defineProperty(EffnetError, Symbol.hasInstance, {
  value(this: unknown, error: unknown): boolean {
    if (this !== EffnetError) return Function.prototype[Symbol.hasInstance].call(this, error)
    return typeof error === 'object' && error !== null && MARK in error
  },
})
