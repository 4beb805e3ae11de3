/** Every op of the table by name. A new op is one file in this folder and one line here. */
import { EffnetError } from '../../errors.js'
import { OP_NAMES, type OpName } from '../op_table.js'
import { activation, activationBwd } from './activation.js'
import { add } from './add.js'
import { bnApply, bnBwdApply, bnBwdReduce, bnInvStd, bnStats } from './batch_norm.js'
import { bnAct, bnActBwdApply, bnActBwdGate, bnActBwdMerge, bnActBwdReduce, bnActBwdSums, bnActPool } from './bn_act.js'
import { channelScale, channelScaleBwdGate } from './channel_scale.js'
import { conv2dBiasAct, depthwiseConv2dBiasAct } from './conv_bias_act.js'
import { conv2d, conv2dBwdData, conv2dBwdWeights } from './conv2d.js'
import { conv2dBwd } from './conv2d_bwd.js'
import { conv2dStats } from './conv2d_stats.js'
import type { OpDef } from './def.js'
import {
  depthwiseConv2d,
  depthwiseConv2dBwd,
  depthwiseConv2dBwdData,
  depthwiseConv2dBwdWeights,
  depthwiseConv2dStats,
} from './depthwise_conv2d.js'
import { dropout, dropPath } from './drop.js'
import { expandDepthwiseBiasAct } from './expand_depthwise.js'
import { foldBnOp } from './fold_bn.js'
import { globalAvgPool, globalAvgPoolBwd } from './global_avg_pool.js'
import { cast, fill, inputNormalize } from './input.js'
import { inputConv2dBiasAct, inputConv2dBwdWeights, inputConv2dStats } from './input_conv2d.js'
import { linear, linearBwdData, linearBwdWeights } from './linear.js'
import { emaUpdate, gradNorm, optimizerAdamw, optimizerRmsprop, optimizerSgd } from './optimizer.js'
import { seGate, seGateBwd } from './se_gate.js'
import { softmax, softmaxCrossEntropy } from './softmax.js'

const DEFS: ReadonlyMap<OpName, OpDef> = new Map(
  [
    inputNormalize,
    cast,
    fill,
    conv2d,
    conv2dBwdData,
    conv2dBwdWeights,
    conv2dBiasAct,
    conv2dStats,
    conv2dBwd,
    inputConv2dStats,
    inputConv2dBiasAct,
    inputConv2dBwdWeights,
    depthwiseConv2d,
    depthwiseConv2dBwdData,
    depthwiseConv2dBwdWeights,
    depthwiseConv2dBiasAct,
    expandDepthwiseBiasAct,
    depthwiseConv2dStats,
    depthwiseConv2dBwd,
    bnStats,
    bnInvStd,
    bnApply,
    bnBwdReduce,
    bnBwdApply,
    bnAct,
    bnActPool,
    bnActBwdReduce,
    bnActBwdApply,
    bnActBwdGate,
    bnActBwdSums,
    bnActBwdMerge,
    activation,
    activationBwd,
    globalAvgPool,
    globalAvgPoolBwd,
    channelScale,
    channelScaleBwdGate,
    add,
    dropPath,
    dropout,
    linear,
    linearBwdData,
    linearBwdWeights,
    seGate,
    seGateBwd,
    softmaxCrossEntropy,
    softmax,
    foldBnOp,
    gradNorm,
    optimizerSgd,
    optimizerRmsprop,
    optimizerAdamw,
    emaUpdate,
  ].map((def) => [def.name, def]),
)

/** The definition of an op of the table. */
export function opDef(name: OpName): OpDef {
  const def = DEFS.get(name)
  if (!def) throw new EffnetError('EFF_INTERNAL', `op ${name} has no definition in ts/graph/ops`)
  return def
}

/** Ops of the table without a definition; a test holds this empty. */
export const undefinedOps = (): OpName[] => OP_NAMES.filter((name) => !DEFS.has(name))
