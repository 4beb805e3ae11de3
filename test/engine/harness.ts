import { type ModelConfig, modelParams } from '../../ts/nn/index.js'
import { Session, type SessionPrecision } from '../../ts/runtime/session.js'
import { goldenWeights, hashFill } from '../helpers/golden.js'

/** Weights of the golden checks, float64 by name. */
export async function goldenSession(
  config: ModelConfig,
  precision: SessionPrecision = 'fp32',
  threads = 2,
  device = 'cpu',
): Promise<Session> {
  const session = await Session.create({ config, precision, threads, device })
  for (const [name, values] of goldenWeights(config)) session.write(name, Float32Array.from(values))
  return session
}

/** uint8 NHWC pixels; the same as scripts/fixtures/make_training_losses.py for t = 200000 + step. */
export const hashPixels = (t: number, count: number): Uint8Array =>
  Uint8Array.from(hashFill(t, count), (u) => Math.floor((u + 1) * 128))

/** Class numbers; the same as the script's for t = 300000 + step. */
export const hashLabels = (t: number, count: number, classes: number): Int32Array =>
  Int32Array.from(hashFill(t, count), (u) => Math.round(((u + 1) / 2) * 4294967296) % classes)

/** All weights of a session, by name. */
export const allWeights = (session: Session): Map<string, Float32Array> =>
  new Map(modelParams(session.config).map((p) => [p.name, session.read(p.name)]))

/** max |a - b| / max |b|. */
export function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let worst = 0
  let scale = 0
  for (let i = 0; i < b.length; i++) {
    worst = Math.max(worst, Math.abs(a[i]! - b[i]!))
    scale = Math.max(scale, Math.abs(b[i]!))
  }
  return worst / Math.max(scale, 1e-30)
}
