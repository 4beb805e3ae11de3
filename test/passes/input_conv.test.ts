import { describe, expect, it } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import { actCode, type Tensor } from '../../ts/graph/types.js'
import { verify } from '../../ts/graph/verify.js'
import { buildEfficientNet, type ModelConfig } from '../../ts/nn/index.js'
import { applyPatterns } from '../../ts/passes/fuse.js'
import { inputInConvolutions } from '../../ts/passes/fuse_patterns/input_conv.js'
import { eliminateDead, foldBn, fuseBackward, markOutputs } from '../../ts/passes/index.js'
import { anyParam, networkValues } from '../graph/values.js'
import { withStoredInput } from '../helpers/stored_input.js'
import { expectEqual } from './random_graph.js'
import { differentiated, shortened } from './training_graph.js'

const GPU = { device: 'cuda' } as const
const CPU = { device: 'cpu' } as const

const readers = (graph: Graph): string[] =>
  graph.nodes.filter((n) => n.op.startsWith('input_') || n.inputs.some((t) => t?.dtype === 'u8')).map((n) => n.op)

/** Fused for a GPU but for what is tested, and with it. */
function training(config: ModelConfig, frozen?: (name: string) => boolean): Graph {
  const done = eliminateDead(fuseBackward(differentiated(config, GPU, { size: 40, ...(frozen && { frozen }) }), GPU))
  verify(done)
  return done
}

function evaluation(config: ModelConfig, target: typeof GPU | typeof CPU): Graph {
  const graph = new Graph('eval')
  const net = buildEfficientNet(graph, config, { batch: 2, height: 40, width: 40, mode: 'eval', dtype: 'f32' })
  return eliminateDead(foldBn(markOutputs(graph, [net.logits.name]), target))
}

describe('on a GPU the first convolution reads the uint8 images', () => {
  it.each(['efficientnet_b0', 'efficientnetv2_b0'])('%s in training: the same results', (name) => {
    const fused = training(shortened(name, 2))
    expect(readers(fused)).toEqual(['input_conv2d_stats', 'input_conv2d_bwd_weights'])
    const stored = withStoredInput(fused, 'f32')
    expect(readers(stored)).toEqual(['input_normalize'])
    expectEqual(stored, fused, networkValues(stored, 3))
  })

  it('in inference: the same results', () => {
    const config = shortened('efficientnet_b0', 2)
    const folded = evaluation(config, GPU)
    expect(readers(folded)).toEqual(['input_conv2d_bias_act'])
    const before = evaluation(config, CPU)
    expect(readers(before)).toEqual(['input_normalize'])
    expectEqual(before, folded, networkValues(before, 3), 1e-11)
  })

  it('with weights that are frozen', () => {
    const fused = training(shortened('efficientnet_b0', 2), (name) => name === 'conv_stem.weight')
    expect(readers(fused)).toEqual(['input_conv2d_stats'])
  })
})

describe('the normalised images are stored', () => {
  it('where running statistics normalise what the first convolution makes', () => {
    const fused = training(shortened('efficientnet_b0', 2), (name) => name.startsWith('bn1.'))
    expect(readers(fused)).toEqual(['input_normalize'])
    expect(fused.nodes.filter((n) => n.inputs[0]?.name === 'normalize').map((n) => n.op)).toEqual([
      'conv2d',
      'conv2d_bwd_weights',
    ])
  })

  const norm = { mean0: 1, mean1: 2, mean2: 3, std0: 4, std1: 5, std2: 6 }
  const window = { stride: 1, pad_t: 0, pad_l: 0, pad_b: 0, pad_r: 0 }
  type Use = (graph: Graph, images: Tensor) => void
  function reading(use: Use, asOutput = false): Graph {
    const graph = new Graph('uses')
    const src = graph.input('images', [2, 5, 5, 3], 'u8')
    const role = asOutput ? ({ role: 'output' } as const) : {}
    use(graph, graph.node('input_normalize', { src }, norm, { name: 'normalize', dtype: 'bf16', ...role })['dst']!)
    const fused = applyPatterns(graph, [inputInConvolutions], GPU)
    verify(fused)
    return fused
  }
  const convolve =
    (more: (graph: Graph) => Record<string, Tensor> = () => ({}), name = 'conv'): Use =>
    (graph, src) => {
      const weights = graph.input(`${name}.weights`, [8, 1, 1, 3], 'f32')
      const bias = graph.input(`${name}.bias`, [8], 'f32')
      const operands = { src, weights, bias, ...more(graph) }
      graph.node('conv2d_bias_act', operands, { ...window, act: actCode('silu') }, { name, role: 'output' })
    }

  it.each<[string, Use, boolean?]>([
    ['for an op that is no convolution', (g, src) => g.node('activation', { src }, { act: 1 }, { name: 'act' })],
    [
      'for such an op beside a convolution',
      (graph, src) => {
        convolve()(graph, src)
        graph.node('add', { src0: src, src1: src }, {}, { name: 'mixed', role: 'output' })
      },
    ],
    ['for the host beside a convolution', convolve(), true],
    ['for a convolution that multiplies them by a gate', convolve((g) => ({ gate: g.input('gate', [2, 3], 'f32') }))],
    ['for a convolution that adds a residual', convolve((g) => ({ residual: g.input('residual', [2, 5, 5, 8], 'bf16') }))],
    [
      'for a convolution that normalises them again',
      (graph, src) => {
        const vector = (name: string) => graph.input(name, [3], 'f32')
        const names = ['src_mean', 'src_inv_std', 'src_scale', 'src_shift']
        const again = Object.fromEntries(names.map((n) => [n, vector(n)]))
        const operands = { src, weights: graph.input('w', [8, 1, 1, 3], 'f32'), ...again }
        const updates = ['m', 'v'].map((n) => graph.buffer(n, [8], anyParam([8])))
        graph.node('conv2d_stats', operands, { ...window, eps: 1e-3, momentum: 0.1, src_act: 1 }, { name: 'conv', updates })
      },
    ],
  ])('%s', (_, use, asOutput) => {
    expect(readers(reading(use, asOutput))).toEqual(['input_normalize'])
  })

  it('but not for several convolutions', () => {
    const fused = reading((graph, src) => {
      convolve(undefined, 'one')(graph, src)
      convolve(undefined, 'other')(graph, src)
    })
    expect(readers(fused)).toEqual(['input_conv2d_bias_act', 'input_conv2d_bias_act'])
  })

  it('on CPUs', () => {
    expect(inputInConvolutions.applies(CPU)).toBe(false)
  })
})
