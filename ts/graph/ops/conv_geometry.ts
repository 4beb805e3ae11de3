/** Window geometry that dense and depthwise convolutions share. */
import type { Shape } from '../types.js'
import { attr, fail } from './check.js'
import type { Attrs } from './def.js'

export interface Window {
  readonly kh: number
  readonly kw: number
  readonly stride: number
  readonly padT: number
  readonly padL: number
  /** Size of the wide side (src). */
  readonly ih: number
  readonly iw: number
  /** Size of the narrow side (dst). */
  readonly oh: number
  readonly ow: number
}

export const CONV_ATTRS = ['stride', 'pad_t', 'pad_l', 'pad_b', 'pad_r'] as const

/** The window attributes alone, for the backward ops. */
export const convAttrs = (attrs: Attrs): Attrs => Object.fromEntries(CONV_ATTRS.map((name) => [name, attr(attrs, name)]))

/** out = floor((in + pad_begin + pad_end - k) / stride) + 1 on both axes. */
export function windowOf(src: Shape, kh: number, kw: number, attrs: Attrs): Window {
  const [, ih = 0, iw = 0] = src
  const stride = attr(attrs, 'stride')
  const [padT, padL, padB, padR] = [attr(attrs, 'pad_t'), attr(attrs, 'pad_l'), attr(attrs, 'pad_b'), attr(attrs, 'pad_r')]
  if (!Number.isInteger(stride) || stride < 1) fail(`stride ${stride} is no positive integer`)
  for (const pad of [padT, padL, padB, padR])
    if (!Number.isInteger(pad) || pad < 0) fail(`padding ${pad} is no integer from 0 on`)
  const oh = Math.floor((ih + padT + padB - kh) / stride) + 1
  const ow = Math.floor((iw + padL + padR - kw) / stride) + 1
  if (oh < 1 || ow < 1) fail(`src [${src.join(', ')}] is smaller than the window ${kh}x${kw}`)
  return { kh, kw, stride, padT, padL, ih, iw, oh, ow }
}

/** First and last-plus-one tap k with 0 <= out * stride - pad + k < size. */
export const firstTap = (out: number, stride: number, pad: number): number => Math.max(0, pad - out * stride)
export const lastTap = (out: number, stride: number, pad: number, k: number, size: number): number =>
  Math.min(k, size + pad - out * stride)
