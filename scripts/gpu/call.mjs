/**
 * Which call of gpu-check.sh a measurement is of, and on which machine: smoke.mjs, which begins each call, writes it beside the logs, and
 * whatever measures puts it into its rows, since logs of several calls lie side by side.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'

const { EFFNET_GPU_CHECK_LOGS: logs, EFFNET_GPU_CHECK_DATE: date, EFFNET_GPU_CHECK_VERSION: version } = process.env
const file = logs && path.join(logs, 'call.json')

/** Null where it is no call of gpu-check.sh, or there is no GPU. `driver`: "" where nothing tells; `cuda`: 13020 is 13.2. */
export function beginCall({ gpus, driverRelease, driverVersion }) {
  if (!file || gpus.length === 0) return null
  const call = { date, version, gpu: gpus[0].name, driver: driverRelease, cuda: driverVersion }
  writeFileSync(file, JSON.stringify(call))
  return call
}

export const presentCall = () => (file && existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : null)
