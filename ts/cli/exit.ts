/** Error code -> exit code: the table of docs/cli.md. Schedulers retry on 75 and 76 and on nothing else. */
import type { ErrorCode } from '../errors.js'

export const EXIT = {
  ok: 0,
  unexpected: 1,
  usage: 64,
  malformed: 65,
  inputMissing: 66,
  backendMissing: 69,
  trainingFailed: 70,
  outOfMemory: 71,
  cannotCreate: 73,
  io: 74,
  interrupted: 75,
  permission: 77,
  secondInterrupt: 130,
  killed: 143,
} as const

const EXIT_OF_CODE: Record<ErrorCode, number> = {
  EFF_CONFIG_KEY: EXIT.usage,
  EFF_CONFIG_VALUE: EXIT.usage,
  EFF_MODEL_UNKNOWN: EXIT.usage,
  EFF_INVALID_ARGUMENT: EXIT.usage,
  EFF_DATA_DECODE: EXIT.malformed,
  EFF_DATA_LIMIT: EXIT.malformed,
  EFF_DATA_LABEL: EXIT.malformed,
  EFF_WEIGHTS_SHAPE: EXIT.malformed,
  EFF_WEIGHTS_CORRUPT: EXIT.malformed,
  EFF_CKPT_VERSION: EXIT.malformed,
  EFF_CKPT_CORRUPT: EXIT.malformed,
  EFF_DATA_MISSING: EXIT.inputMissing,
  EFF_DATA_EMPTY: EXIT.inputMissing,
  EFF_WEIGHTS_MISSING: EXIT.inputMissing,
  EFF_CKPT_MISSING: EXIT.inputMissing,
  EFF_BACKEND_MISSING: EXIT.backendMissing,
  EFF_CPU_UNSUPPORTED: EXIT.backendMissing,
  EFF_PRECISION: EXIT.backendMissing,
  EFF_NAN: EXIT.trainingFailed,
  EFF_GPU_FAULT: EXIT.trainingFailed,
  EFF_OOM: EXIT.outOfMemory,
  EFF_RUN_EXISTS: EXIT.cannotCreate,
  EFF_DATA_STALLED: EXIT.io,
  EFF_CKPT_NO_SPACE: EXIT.io,
  EFF_IO: EXIT.io,
  EFF_ABORTED: EXIT.interrupted,
  EFF_CLOSED: EXIT.unexpected,
  EFF_PLAN_INVALID: EXIT.unexpected,
  EFF_INTERNAL: EXIT.unexpected,
}

const EXIT_OF_ERRNO: Record<string, number> = {
  ENOENT: EXIT.inputMissing,
  ENOTDIR: EXIT.inputMissing,
  EISDIR: EXIT.inputMissing,
  EACCES: EXIT.permission,
  EPERM: EXIT.permission,
  EROFS: EXIT.cannotCreate,
  EEXIST: EXIT.cannotCreate,
  ENOSPC: EXIT.io,
  EDQUOT: EXIT.io,
  EIO: EXIT.io,
  EMFILE: EXIT.io,
  ENFILE: EXIT.io,
}

/** `code` is an EFF_* code or an errno name of Node (`ENOENT`); anything else is a bug: 1. */
export const exitCodeOf = (code: string | undefined): number =>
  code === undefined ? EXIT.unexpected : (EXIT_OF_CODE[code as ErrorCode] ?? EXIT_OF_ERRNO[code] ?? EXIT.unexpected)
