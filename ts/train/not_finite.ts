/** What to say when a loss, the gradients or an update are not finite. */
import type { NonFinite } from '../binding.js'
import { EffnetError } from '../errors.js'

/** "in the output of blocks.1.0.bn1 (bn_act, forward)". */
function placeOf({ part, op, layer, tensor }: NonFinite): string {
  const name = tensor.replace(/^grad:/, '')
  if (part === 'weights') return `first in the weights, before this step: ${name} (read by ${layer})`
  if (part === 'gradient') return `first in the gradient of ${name} (${layer}, ${op}, backward), which the update took`
  return `first in ${layer} (${op}, ${part}): tensor ${tensor}`
}

export interface NotFiniteAt {
  /** "loss is NaN". */
  what: string
  /** Of the step that went wrong, from 1; undefined outside training. */
  step?: number
  epoch?: number
  lr?: number
  first: NonFinite | null
  /** The checkpoint before it: null where none was written, undefined where none is kept. */
  checkpoint?: { path: string; step: number } | null | undefined
}

/** EFF_NAN. */
export function notFinite({ what, step, epoch, lr, first, checkpoint }: NotFiniteAt): EffnetError {
  const when = step === undefined ? '' : ` in step ${step} (epoch ${epoch}, lr ${lr})`
  const where = first ? `; ${placeOf(first)}` : ''
  const kept =
    checkpoint === undefined
      ? ''
      : checkpoint === null
        ? '; no checkpoint had been written'
        : `; the checkpoint of step ${checkpoint.step} is kept: ${checkpoint.path}`
  const hint =
    step === undefined
      ? 'use an earlier checkpoint: these weights are not sound'
      : first?.part === 'weights'
        ? 'start from sound weights (an earlier checkpoint, another weights file)'
        : 'a lower lr, longer warm-up or clipNorm: 1'
  return new EffnetError('EFF_NAN', `${what}${when}${where}${kept}`, {
    hint,
    details: {
      ...(step === undefined ? {} : { step, epoch, lr }),
      first,
      ...(checkpoint === undefined ? {} : { checkpoint: checkpoint?.path ?? null }),
    },
  })
}

/** Message and hint where no step of a run with a loss scale made an update; `scale` is what the last left of it. */
export function allSkipped(steps: number, scale: number): [message: string, hint: string] {
  const left = steps === 1 ? 'the one update so far was left out, as its' : `all ${steps} updates so far were left out, as their`
  return [
    `${left} gradients were not finite: the weights are those that training began with`,
    `more steps, each of which lowers the loss scale (${scale} now), a smaller lossScale.initial, or precision: 'bf16-mixed'`,
  ]
}
