import { describe, expect, it } from 'vitest'
import { Graph } from '../../ts/graph/graph.js'
import { ALIGNMENT, ARENA } from '../../ts/graph/plan_format.js'
import { actCode, type Node, type ParamInfo, type Tensor, tensorBytes } from '../../ts/graph/types.js'
import { getModelConfig, listModels, modelParams } from '../../ts/nn/index.js'
import { emit } from '../../ts/passes/emit.js'
import { imageRegion } from '../../ts/passes/index.js'
import { activationBytes, type MemoryPlan, planMemory } from '../../ts/passes/plan_memory.js'
import { evalProgram } from '../../ts/runtime/programs.js'
import { weightsLayout } from '../../ts/runtime/weights_layout.js'

const target = { device: 'cpu' } as const
const evaluation = (name: string, batchSize: number, imageSize = 64) =>
  evalProgram(getModelConfig(name), { batchSize, imageSize, dtype: 'f32', target })

const anyParam = (shape: readonly number[]): ParamInfo => ({ kind: 'conv', layout: 'vector', torchShape: shape })
const normalize = { mean0: 0, mean1: 0, mean2: 0, std0: 1, std1: 1, std2: 1 }

/** images -> normalised -> SiLU, and what a test adds. */
function small(batch = 4) {
  const graph = new Graph('small')
  const images = graph.input('images', [batch, 4, 4, 3], 'u8')
  const x = graph.node('input_normalize', { src: images }, normalize, { name: 'normalize', dtype: 'f32' })['dst']!
  const y = graph.node('activation', { src: x }, { act: actCode('silu') }, { name: 'silu' })['dst']!
  const add = (name: string, src0: Tensor, src1: Tensor): Tensor => graph.node('add', { src0, src1 }, {}, { name })['dst']!
  return { graph, images, x, y, add }
}
const names = (nodes: Iterable<Node> | undefined): string[] => [...(nodes ?? [])].map((n) => n.name)

describe('image region', () => {
  it('of every model is all of an evaluation before the classifier; one image has none', () => {
    for (const name of listModels()) {
      const { graph, region, features } = evaluation(name, 2)
      const step = graph.nodes.filter((n) => !n.prepare)
      expect(names(region?.nodes), name).toEqual(names(step.slice(0, -2)))
      expect(names(step.slice(-2)), name).toEqual(['classifier', 'loss'])
      const shared = [...region!.tensors].filter((t) => !region!.inner.has(t)).map((t) => t.name)
      expect(shared, name).toEqual(['images', features])
    }
    expect(evaluation('efficientnet_b0', 1).region).toBeNull()
  })

  it('ends before statistics of the batch and before images are dropped by their number', () => {
    const stats = small()
    const [mean, variance] = ['mean', 'var'].map((n) => stats.graph.buffer(n, [3], anyParam([3]))) as [Tensor, Tensor]
    const made = stats.graph.node(
      'bn_stats',
      { src: stats.y },
      { eps: 1e-3, momentum: 0.1 },
      { name: 'stats', updates: [mean, variance] },
    )
    stats.add('late', stats.y, stats.x)
    expect(made['mean']!.shape).toEqual([3])
    expect(names(imageRegion(stats.graph)?.nodes)).toEqual(['normalize', 'silu'])

    const drop = small()
    const attrs = { drop_rate: 0.5, rng_stream: 1 }
    drop.add('sum', drop.graph.node('drop_path', { src: drop.y }, attrs, { name: 'drop' })['dst']!, drop.x)
    expect(names(imageRegion(drop.graph)?.nodes)).toEqual(['normalize', 'silu'])
  })

  it('keeps what is read behind it for the whole batch', () => {
    const { graph, x, y } = small()
    const buffers = ['mean', 'var'].map((n) => graph.buffer(n, [3], anyParam([3])))
    graph.node('bn_stats', { src: x }, { eps: 1e-3, momentum: 0.1 }, { name: 'stats', updates: buffers })
    const region = imageRegion(graph)!
    expect([...region.tensors].map((t) => t.name).sort()).toEqual(['images', x.name, y.name].sort())
    expect([...region.inner]).toEqual([y])
    const memory = planMemory(
      graph,
      {
        weightOffsets: new Map([
          ['mean', 0],
          ['var', 64],
        ]),
        weightBytes: 128,
      },
      region,
    )
    expect(memory.placements.get(x.id)!.arena).toBe(ARENA.activations)
    expect(memory.placements.get(y.id)!.arena).toBe(ARENA.image)
    expect(memory.arenaBytes[ARENA.image]).toBe(tensorBytes(y) / 4)
  })
})

/** Several images on their way, each at a node of its own: nobody may read bytes that something else has taken meanwhile. */
function checkImagesDoNotMeet(memory: MemoryPlan, pick: (n: number) => number): void {
  const { region } = memory
  const owner = new Map<string, string>()
  const lines = (t: Tensor, lane: number, image: number): string[] => {
    const { arena, offset } = memory.placements.get(t.id)!
    const part = region!.tensors.has(t)
    const bytes = part ? tensorBytes(t) / region!.images : tensorBytes(t)
    const start = offset + (part && !region!.inner.has(t) ? image * bytes : 0)
    // Of 4 bytes each, so that neighbouring images of a small tensor are told apart.
    const count = Math.ceil(bytes / 4)
    const places = [...new Set([0, count >> 2, count >> 1, count - 1])]
    return places.map((i) => `${arena}:${arena === ARENA.image ? lane : 0}:${start + 4 * i}`)
  }
  const visit = (node: Node, lane: number, image: number): void => {
    const label = (t: Tensor): string => (region!.tensors.has(t) ? `${t.name}/${image}` : t.name)
    const lives = (t: Tensor | null): t is Tensor => t?.role === 'activation' || t?.role === 'output'
    for (const t of node.inputs.filter(lives)) {
      for (const line of lines(t, lane, image)) {
        if (owner.get(line) !== label(t)) throw new Error(`${node.name} reads ${label(t)}, overwritten by ${owner.get(line)}`)
      }
    }
    for (const t of node.outputs.filter(lives)) for (const line of lines(t, lane, image)) owner.set(line, label(t))
  }
  const nodes = [...region!.nodes]
  const lanes = [0, 1, 2].map(() => ({ image: -1, at: nodes.length }))
  let given = 0
  for (;;) {
    const busy = lanes.filter((l) => l.at < nodes.length || given < region!.images)
    if (busy.length === 0) break
    const lane = busy[pick(busy.length)]!
    if (lane.at === nodes.length) Object.assign(lane, { image: given++, at: 0 })
    visit(nodes[lane.at++]!, lanes.indexOf(lane), lane.image)
  }
}

describe('memory of a region', () => {
  it('keeps every tensor of an image until its last reader, whatever the other images do', () => {
    let state = 7
    const pick = (n: number): number => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0
      return Math.floor((state / 2 ** 32) * n)
    }
    for (const name of ['efficientnet_b0', 'efficientnetv2_b0', 'efficientnet_lite0']) {
      const layout = weightsLayout(modelParams(getModelConfig(name)))
      const { graph, region } = evaluation(name, 7)
      const memory = planMemory(graph, { weightOffsets: layout.offsets, weightBytes: layout.bytes }, region)
      checkImagesDoNotMeet(memory, pick)
    }
    // Inside and behind the region: a tensor of the batch may not share bytes with one that another image still reads.
    const { graph, x, y, add } = small(5)
    const wide = add('wide', x, y)
    const more = add('more', wide, y)
    const buffers = ['mean', 'var'].map((n) => graph.buffer(n, [3], anyParam([3])))
    for (const [i, src] of [more, wide, x].entries()) {
      const { dst } = graph.node('activation', { src }, { act: actCode('relu') }, { name: `relu${i}` })
      if (i === 0) graph.node('bn_stats', { src: dst! }, { eps: 1e-3, momentum: 0.1 }, { name: 'stats', updates: buffers })
    }
    const region = imageRegion(graph)!
    expect(names(region.nodes)).toEqual(['normalize', 'silu', 'wide', 'more', 'relu0'])
    checkImagesDoNotMeet(
      planMemory(
        graph,
        {
          weightOffsets: new Map([
            ['mean', 0],
            ['var', 64],
          ]),
          weightBytes: 128,
        },
        region,
      ),
      pick,
    )
  })

  it('is that of the images in work: as many as threads, or one', () => {
    const layout = weightsLayout(modelParams(getModelConfig('efficientnet_b0')))
    const request = { weightOffsets: layout.offsets, weightBytes: layout.bytes }
    const { graph, region } = evaluation('efficientnet_b0', 8, 224)
    const memory = planMemory(graph, request, region)
    const image = memory.arenaBytes[ARENA.image]!
    // Widest moment of B0 at 224 px: 112*112*96 in, 56*56*96 out.
    expect(image).toBeLessThanOrEqual(1.05 * 4 * 96 * (112 * 112 + 56 * 56))
    expect(image % ALIGNMENT).toBe(0)
    const inWork = (threads: number): number => Math.floor(activationBytes(memory, threads) / image)
    expect([1, 2, 3, 8, 9, 10, 11, 64].map(inWork)).toEqual([1, 2, 3, 8, 9, 10, 1, 1])
    const plain = planMemory(graph, request)
    expect(activationBytes(plain, 64)).toBe(plain.arenaBytes[ARENA.activations])
    for (let threads = 1; threads <= 8; threads++) {
      expect(activationBytes(memory, threads)).toBeLessThanOrEqual(1.01 * activationBytes(plain, 1))
    }
    expect(emit(graph, memory).hash).not.toBe(emit(graph, plain).hash)
  })
})
