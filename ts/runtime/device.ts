/** Devices by the names that users give them, opened once a process. */
import { binding, type DeviceHandle } from '../binding.js'
import type { DataBackend } from '../data/types.js'
import { EffnetError } from '../errors.js'
import { checkCudaVariables } from './cuda_variables.js'

export type Device = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`

/** "cpu" or "cuda:N". `auto` is the CPU: a GPU is taken only where it was asked for. @throws EFF_CONFIG_VALUE */
export function deviceName(device: string): 'cpu' | `cuda:${number}` {
  if (device === 'auto' || device === 'cpu') return 'cpu'
  const gpu = /^cuda(?::(0|[1-9]\d{0,3}))?$/.exec(device)
  if (gpu) return `cuda:${Number(gpu[1] ?? 0)}`
  throw new EffnetError('EFF_CONFIG_VALUE', `no device "${device}"`, { hint: "'cpu', 'cuda' or 'cuda:1'" })
}

/** What to ask for instead of a device that cannot be opened: why it cannot, and the mend of that, the message says. */
function instead(message: string): string {
  if (/this process sees [1-9]/.test(message)) return "device 'cuda:0'"
  const [, capability] = /this build has no kernels for .*\(compute capability ([\d.]+)\)/.exec(message) ?? []
  if (!capability) return "device 'cpu'"
  const build = `npm run setup -- --cuda --cuda-architectures ${capability.replace('.', '')}`
  return `in a checkout of effnet-native: ${build}; or device 'cpu'`
}

const opened = new Map<string, Promise<DeviceHandle>>()

/**
 * The device of that name (`deviceName`); a GPU's context stays until the process ends.
 * @throws EFF_BACKEND_MISSING with what is missing: never another device instead; EFF_OOM where others hold a GPU's memory;
 *   EFF_CONFIG_VALUE for a variable that says how a GPU works and has a value there is not
 */
export async function openDevice(name: string): Promise<DeviceHandle> {
  if (name !== 'cpu') checkCudaVariables()
  const known = opened.get(name)
  if (known) return known
  const device = binding()
    .openDevice(name)
    .catch((cause: EffnetError) => {
      opened.delete(name)
      throw new EffnetError(cause.code, `device "${name}": ${cause.message}`, {
        hint: cause.hint ?? instead(cause.message),
        cause,
      })
    })
  opened.set(name, device)
  return device
}

/** @throws EFF_CONFIG_VALUE where images are to be decoded on a GPU and the model is on none */
export function checkDataBackend(backend: DataBackend | undefined, device: string): void {
  if (backend === undefined || backend === 'cpu') return
  if (backend !== 'gpu') {
    throw new EffnetError('EFF_CONFIG_VALUE', `dataBackend = ${JSON.stringify(backend)}: 'cpu' or 'gpu'`)
  }
  if (device !== 'cpu') return
  throw new EffnetError(
    'EFF_CONFIG_VALUE',
    "dataBackend 'gpu' decodes images on the GPU of the model, and this model is on the CPU",
    {
      hint: "dataBackend: 'cpu', or createModel(name, { device: 'cuda' })",
    },
  )
}

/** What `dataBackend: 'gpu'` needs beside the GPU. @throws EFF_BACKEND_MISSING with what was looked for, and the mend */
export async function checkImageDecoder(backend: DataBackend): Promise<void> {
  if (backend === 'cpu') return
  const { libraries } = await binding().cudaInfo()
  const found = libraries.find(({ name }) => name === 'nvJPEG')
  if (!found || found.problem === '') return
  throw new EffnetError('EFF_BACKEND_MISSING', `dataBackend 'gpu' needs nvJPEG: ${found.problem}`, {
    hint: `${found.mend}; or dataBackend: 'cpu'`,
  })
}
