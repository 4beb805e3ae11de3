/** What a precision means for plans, and where it can be had. */
import type { CpuInfo } from '../binding.js'
import { EffnetError } from '../errors.js'

export type SessionPrecision = 'fp32' | 'tf32' | 'fp16-mixed' | 'bf16-mixed'

export interface NumberFormat {
  /** Of activations and their gradients; everything else is FP32. */
  dtype: 'f32' | 'bf16' | 'f16'
  /** Products of convolutions and matrices may round their FP32 operands to TF32. */
  tf32: boolean
  /** Gradients are too small for the format unless the loss is scaled. */
  lossScale: boolean
}

export const FORMATS: Readonly<Record<SessionPrecision, NumberFormat>> = {
  fp32: { dtype: 'f32', tf32: false, lossScale: false },
  tf32: { dtype: 'f32', tf32: true, lossScale: false },
  'fp16-mixed': { dtype: 'f16', tf32: false, lossScale: true },
  'bf16-mixed': { dtype: 'bf16', tf32: false, lossScale: false },
}

/** Of a CPU; every GPU that plans run on has all of them. @throws EFF_PRECISION with the reason and the mend */
export function checkCpuPrecision(precision: SessionPrecision, cpu: CpuInfo): void {
  const bf16 = cpu.avx512Bf16 || cpu.amxBf16
  const refuse = (why: string): never => {
    throw new EffnetError('EFF_PRECISION', why, { hint: bf16 ? '--precision fp32 or bf16-mixed' : '--precision fp32' })
  }
  if (precision === 'tf32') refuse('tf32 is a format of NVIDIA GPUs: there is none of it on a CPU')
  if (precision === 'fp16-mixed') refuse('fp16-mixed is for GPUs: CPUs have no kernels for FP16')
  if (precision === 'bf16-mixed' && !bf16) refuse(`bf16-mixed needs AVX512_BF16 or AMX; this ${cpu.model} has neither`)
}

/** @throws EFF_CONFIG_VALUE where there are no 16-bit kernels */
export function checkHalfWeightGradients(
  wanted: boolean,
  { precision, device }: { precision: SessionPrecision; device: string },
): void {
  if (!wanted) return
  const refuse = (why: string, hint: string): never => {
    throw new EffnetError('EFF_CONFIG_VALUE', `halfWeightGradients is ${why}`, { hint })
  }
  if (device === 'cpu') refuse('for GPUs: on a CPU gradients of weights are FP32', "createModel(name, { device: 'cuda' })")
  if (FORMATS[precision].dtype === 'f32') {
    refuse(
      `for bf16-mixed and fp16-mixed; the model was made with ${precision}`,
      "createModel(name, { precision: 'bf16-mixed' })",
    )
  }
}
