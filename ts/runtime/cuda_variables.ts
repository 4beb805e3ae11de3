/**
 * Variables of the environment that decide how a GPU runs a model. Looked at where a GPU is opened, so that a value there is not is an
 * error there, and not of the first op that is bound.
 */
import { EffnetError } from '../errors.js'

interface Variable {
  /** Besides the empty one, which is as if it were not set. */
  values: readonly string[]
  hint: string
}

const VARIABLES = {
  /** Read by native/cuda/executable.cc. */
  EFFNET_CUDA_SYNC: {
    values: ['0', '1'],
    hint: 'EFFNET_CUDA_SYNC=1 waits after every kernel, so that a fault of the GPU names the op; 0 is as if it were not set',
  },
  /** Read by native/cuda/providers/providers.cc. */
  EFFNET_CUDA_PROVIDER: {
    values: ['own', 'cublaslt', 'cudnn'],
    hint: "EFFNET_CUDA_PROVIDER=own takes the package's own kernels alone, the others a library's where it has one; unset, a table or measuring decides",
  },
  /** Read by ts/runtime/tuning.ts. */
  EFFNET_CUDA_TUNE: {
    values: ['0', '1', 'again'],
    hint: 'EFFNET_CUDA_TUNE=0 takes kernels by a table, again measures what was measured before',
  },
} as const satisfies Record<string, Variable>

type Name = keyof typeof VARIABLES
export const CUDA_VARIABLES = Object.keys(VARIABLES) as readonly Name[]

/** Its value, or '' where it is not set. @throws EFF_CONFIG_VALUE */
export function cudaVariable<N extends Name>(name: N): (typeof VARIABLES)[N]['values'][number] | '' {
  const value = process.env[name] ?? ''
  const { values, hint }: Variable = VARIABLES[name]
  if (value !== '' && !values.includes(value)) {
    const list = `${values.slice(0, -1).join(', ')} and ${values.at(-1)}`
    throw new EffnetError('EFF_CONFIG_VALUE', `${name}=${value}: there are ${list}`, { hint })
  }
  return value as (typeof VARIABLES)[N]['values'][number] | ''
}

/** @throws EFF_CONFIG_VALUE */
export function checkCudaVariables(): void {
  for (const name of CUDA_VARIABLES) cudaVariable(name)
}
