/** Devices by the names that users give them, opened once a process. */
import { binding, type DeviceHandle } from '../binding.js'
import { EffnetError } from '../errors.js'

export type Device = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`

/** "cpu" or "cuda:N". `auto` is the CPU: a GPU is taken only where it was asked for. @throws EFF_CONFIG_VALUE */
export function deviceName(device: string): 'cpu' | `cuda:${number}` {
  if (device === 'auto' || device === 'cpu') return 'cpu'
  const gpu = /^cuda(?::(\d{1,4}))?$/.exec(device)
  if (gpu) return `cuda:${Number(gpu[1] ?? 0)}`
  throw new EffnetError('EFF_CONFIG_VALUE', `no device "${device}"`, { hint: "'cpu', 'cuda' or 'cuda:1'" })
}

const opened = new Map<string, Promise<DeviceHandle>>()

/**
 * The device of that name (`deviceName`); a GPU's context stays until the process ends.
 * @throws EFF_BACKEND_MISSING with what is missing: never another device instead
 */
export function openDevice(name: string): Promise<DeviceHandle> {
  const known = opened.get(name)
  if (known) return known
  const device = binding()
    .openDevice(name)
    .catch((cause: EffnetError) => {
      opened.delete(name)
      throw new EffnetError(cause.code, `device "${name}": ${cause.message}`, { hint: "device 'cpu'", cause })
    })
  opened.set(name, device)
  return device
}
