import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import sharp from 'sharp'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { binding } from '../../ts/binding.js'
import {
  createModel,
  type Embedding,
  evaluateModel,
  imageFolder,
  listModels,
  loadModel,
  type Prediction,
} from '../../ts/index.js'
import { checkTensorSizes, Model } from '../../ts/model.js'
import { getModelConfig } from '../../ts/nn/index.js'
import { initParams } from '../../ts/runtime/init.js'
import { Session } from '../../ts/runtime/session.js'
import { pixels } from '../train/helpers/data.js'

const root = mkdtempSync(path.join(os.tmpdir(), 'effnet-predict-'))
const file = (name: string) => path.join(root, name)
const SIDE = 80
const OPTIONS = { imageSize: 64, logits: true } as const
let model: Model

beforeAll(async () => {
  model = await createModel('tf_efficientnet_b0', { pretrained: true, threads: 2 })
  for (let i = 0; i < 5; i++) {
    const raw = { width: SIDE, height: SIDE, channels: 3 } as const
    const image = sharp(pixels(i % 3, i, SIDE), { raw })
    writeFileSync(file(`${i}.png`), await image.clone().png().toBuffer())
    writeFileSync(file(`${i}.jpg`), await image.jpeg().toBuffer())
  }
  writeFileSync(file('broken.jpg'), Buffer.concat([readFileSync(file('0.jpg')).subarray(0, 60)]))
  writeFileSync(file('text.png'), 'no image at all')
  writeFileSync(file('empty.jpg'), '')
})
afterAll(async () => {
  await model.close()
  rmSync(root, { recursive: true, force: true })
})

const logitsOf = (r: unknown) => (r as Prediction).logits!
const png = (i: number) => file(`${i}.png`)

describe('predict', () => {
  it('gives the best classes with ImageNet names', async () => {
    const [result] = (await model.predict(file('0.jpg'))) as [Prediction]
    expect(result.path).toBe(file('0.jpg'))
    expect(result.topk.length).toBe(5)
    const scores = result.topk.map((t) => t.score)
    expect(scores).toEqual([...scores].sort((a, b) => b - a))
    expect(result.topk[0]!.label).toBe(model.classes![result.topk[0]!.index])
    expect(result.logits).toBeUndefined()
  })

  it('takes paths, URLs, bytes and pixels alike', async () => {
    const data = pixels(1, 1, SIDE)
    const rgba = new Uint8ClampedArray(SIDE * SIDE * 4).fill(7)
    for (let i = 0; i < SIDE * SIDE; i++) for (let c = 0; c < 3; c++) rgba[4 * i + c] = data[3 * i + c]!
    const results = await model.predict(
      [
        png(1),
        pathToFileURL(png(1)),
        readFileSync(png(1)),
        { data, width: SIDE, height: SIDE },
        { data: rgba, width: SIDE, height: SIDE, channels: 4 },
      ],
      OPTIONS,
    )
    for (const r of results) expect(logitsOf(r)).toEqual(logitsOf(results[0]))
    expect(results.map((r) => r.path)).toEqual([png(1), png(1), undefined, undefined, undefined])
  })

  it('answers for a URL that is of no file here in its place', async () => {
    const far = new URL('https://example.org/a.jpg')
    const [first, second] = await model.predict([far, pathToFileURL(file('0.jpg'))], OPTIONS)
    expect(first).toMatchObject({
      path: far.href,
      error: { code: 'EFF_INVALID_ARGUMENT', message: expect.stringMatching(/file:/) },
    })
    expect(second).toMatchObject({ path: file('0.jpg'), topk: expect.anything() })
  })

  it('keeps the order; an unreadable image gives its error in place', async () => {
    const missing = file('missing.jpg')
    const inputs = [png(0), missing, png(1), file('text.png'), file('empty.jpg'), png(2)]
    const results = await model.predict(inputs, { ...OPTIONS, batchSize: 2 })
    expect(results.map((r) => r.path)).toEqual(inputs)
    expect(results.map((r) => r.error?.code ?? 'ok')).toEqual([
      'ok',
      'EFF_DATA_MISSING',
      'ok',
      'EFF_DATA_DECODE',
      'EFF_DATA_DECODE',
      'ok',
    ])
    expect((results[1] as { error: { message: string } }).error.message).toContain(missing)
    const alone = await model.predict([png(0), png(1)], { ...OPTIONS, batchSize: 2 })
    expect(logitsOf(results[2])).not.toEqual(logitsOf(alone[0]))
  })

  it('refuses pixels that do not fit their size, and images above the limit, each for itself', async () => {
    const results = await model.predict([{ data: new Uint8Array(10), width: 2, height: 2 }, png(0), file('0.jpg')], {
      ...OPTIONS,
      maxPixels: SIDE * SIDE - 1,
    })
    expect(results.map((r) => r.error?.code ?? 'ok')).toEqual(['EFF_INVALID_ARGUMENT', 'EFF_DATA_LIMIT', 'EFF_DATA_LIMIT'])
  })

  it('opens few files at once, however large the batch', async () => {
    const many = path.join(root, 'many')
    const script = `
      import { createModel } from ${JSON.stringify(new URL('../../ts/index.ts', import.meta.url).href)}
      await using model = await createModel('tf_efficientnet_b0', { pretrained: true, threads: 1 })
      const results = await model.predict(new Array(300).fill(${JSON.stringify(file('0.jpg'))}), { imageSize: 32, batchSize: 300 })
      console.log(results.filter((r) => 'error' in r).length)`
    writeFileSync(`${many}.mts`, script)
    const child = ['ulimit -n 128 && exec', process.execPath, '--import', 'tsx', `${many}.mts`].join(' ')
    const run = spawnSync('sh', ['-c', child], { encoding: 'utf8', timeout: 60_000 })
    expect(run.stdout.trim(), run.stderr).toBe('0')
  })

  it('streams any number of images, lazily', async () => {
    let asked = 0
    function* endless() {
      for (;;) {
        asked++
        yield png(asked % 5)
      }
    }
    let seen = 0
    for await (const result of model.predictStream(endless(), { imageSize: 64, batchSize: 2 })) {
      expect('error' in result).toBe(false)
      if (++seen === 5) break
    }
    expect(asked).toBeLessThanOrEqual(12)
  })

  it('serves calls at the same time, with the same results', async () => {
    const inputs = [0, 1, 2, 3, 4].map(png)
    const [a, b, c] = await Promise.all([
      model.predict(inputs, OPTIONS),
      model.predict(inputs, OPTIONS),
      model.predict(inputs, OPTIONS),
    ])
    expect(b!.map(logitsOf)).toEqual(a!.map(logitsOf))
    expect(c!.map(logitsOf)).toEqual(a!.map(logitsOf))
  })

  it('ends when its signal is aborted', async () => {
    const abort = new AbortController()
    abort.abort()
    await expect(model.predict(png(0), { signal: abort.signal })).rejects.toThrow(
      expect.objectContaining({ code: 'EFF_ABORTED' }),
    )
  })

  it('checks its options', async () => {
    const bad = expect.objectContaining({ code: 'EFF_INVALID_ARGUMENT' })
    await expect(model.predict(png(0), { batchSize: 0 })).rejects.toThrow(bad)
    await expect(async () => model.predict(png(0), { topK: 0 })).rejects.toThrow(bad)
    expect(((await model.predict(png(0), { imageSize: 64, topK: 5000 }))[0] as Prediction).topk.length).toBe(1000)
  })
})

describe('preprocessing', () => {
  it('squashes the whole image where the model was made so, unless a crop is asked for', async () => {
    const config = getModelConfig('tf_efficientnet_b0', { numClasses: 3, preprocessing: { cropMode: 'squash', cropPct: 1 } })
    const session = await Session.create({ config, precision: 'fp32', threads: 1 })
    await using squashing = new Model(session, config, { kind: 'random', matched: 0, total: 0 }, undefined)
    await initParams(config, 1, (param, values) => session.write(param.name, values))
    const wide = sharp(pixels(1, 3, SIDE), { raw: { width: SIDE, height: SIDE, channels: 3 } }).resize(160, SIDE, { fit: 'fill' })
    const squashed = sharp(await wide.clone().png().toBuffer()).extract({ left: 40, top: 0, width: 80, height: 80 })
    const [whole, centre] = [await wide.png().toBuffer(), await squashed.png().toBuffer()]
    const options = { ...OPTIONS, imageSize: 80 }
    const [a, b] = await squashing.predict([whole, centre], options)
    expect(logitsOf(a)).not.toEqual(logitsOf(b))
    const [c, d] = await squashing.predict([whole, centre], { ...options, cropPct: 1 })
    expect(logitsOf(c)).toEqual(logitsOf(d))
    expect(logitsOf(c)).toEqual(logitsOf(b))
  })
})

describe('embed', () => {
  it('gives the features that the classifier sees', async () => {
    const [e] = (await model.embed(png(3), { imageSize: 64 })) as [Embedding]
    const [p] = await model.predict(png(3), OPTIONS)
    expect(e.features.length).toBe(1280)
    const weights = model.session.read('classifier.weight')
    const bias = model.session.read('classifier.bias')
    for (const k of [0, 500, 999]) {
      let sum = bias[k]!
      for (let i = 0; i < 1280; i++) sum += weights[k * 1280 + i]! * e.features[i]!
      expect(logitsOf(p)[k]).toBeCloseTo(sum, 3)
    }
  })
})

describe('models', () => {
  it('round-trip through a weights file and through a folder', async () => {
    const weights = file('copy.safetensors')
    await model.save(weights)
    await model.save(file('folder'))
    const [expected] = await model.predict(png(0), OPTIONS)
    await using a = await createModel('tf_efficientnet_b0', { pretrained: weights, threads: 1 })
    await using b = await loadModel(file('folder'))
    for (const again of [a, b]) {
      const [result] = await again.predict(png(0), OPTIONS)
      expect(logitsOf(result)).toEqual(logitsOf(expected))
      expect(again.classes).toEqual(model.classes)
    }
    expect(readFileSync(path.join(file('folder'), 'model.safetensors')).equals(readFileSync(weights))).toBe(true)
  })

  it('get a new head of another size, and say so', async () => {
    await using small = await createModel('tf_efficientnet_b0', { pretrained: true, classes: ['a', 'b'], threads: 1 })
    expect(small.weights).toMatchObject({ kind: 'file', headReplaced: { from: 1000, to: 2 } })
    expect(small.classes).toEqual(['a', 'b'])
    const head = small.session.read('classifier.weight')
    const rms = Math.sqrt(head.reduce((s, v) => s + v * v, 0) / head.length)
    expect(rms).toBeGreaterThan(0.009)
    expect(rms).toBeLessThan(0.011)
    expect([...small.session.read('classifier.bias')]).toEqual([0, 0])
  })

  it('a CPU that lacks the instructions is named at once', async () => {
    const native = binding()
    const cpu = native.cpuInfo()
    const spy = vi.spyOn(native, 'cpuInfo').mockReturnValue({ ...cpu, unsupported: 'this CPU has no AVX2' })
    try {
      const made = createModel('efficientnet_b0')
      await expect(made).rejects.toThrow(
        expect.objectContaining({ code: 'EFF_CPU_UNSUPPORTED', message: expect.stringMatching(/AVX2/) }),
      )
    } finally {
      spy.mockRestore()
    }
  })

  it('options that do not exist are named, with the nearest', async () => {
    const unknown = (hint: string) => expect.objectContaining({ code: 'EFF_CONFIG_KEY', hint: `did you mean ${hint}?` })
    const misspelt = (o: object) => o as never
    await expect(createModel('efficientnet_b0', misspelt({ numclasses: 3 }))).rejects.toThrow(unknown('numClasses'))
    await expect(loadModel(root, misspelt({ precison: 'fp32' }))).rejects.toThrow(unknown('precision'))
    await expect(imageFolder(root, misspelt({ valsplit: 0.1 }))).rejects.toThrow(unknown('valSplit'))
    const data = { root, classes: model.classes } as never
    await expect(evaluateModel(model, misspelt({ data, batch: 3 }))).rejects.toThrow(unknown('batchSize'))
    await expect(model.predict(png(0), misspelt({ topk: 3 }))).rejects.toThrow(unknown('topK'))
    await expect(model.embed(png(0), misspelt({ topK: 3 }))).rejects.toThrow(expect.objectContaining({ code: 'EFF_CONFIG_KEY' }))
  })

  it('say what is not there', async () => {
    const code = (c: string) => expect.objectContaining({ code: c })
    await expect(createModel('efficientnet_bo')).rejects.toThrow(code('EFF_MODEL_UNKNOWN'))
    await expect(createModel('efficientnet_b1', { pretrained: true })).rejects.toThrow(code('EFF_WEIGHTS_MISSING'))
    await expect(createModel('efficientnet_b0', { device: 'cuda' })).rejects.toThrow(code('EFF_BACKEND_MISSING'))
    const wrong = code('EFF_INVALID_ARGUMENT')
    await expect(createModel(undefined as never)).rejects.toThrow(wrong)
    await expect(createModel('efficientnet_b0', null as never)).rejects.toThrow(wrong)
    await expect(loadModel(undefined as never)).rejects.toThrow(wrong)
    await expect(model.predict(undefined as never)).rejects.toThrow(wrong)
    await expect(model.predict('x.jpg', 5 as never)).rejects.toThrow(wrong)
    for (const imageSize of [31, 4097, 64.5]) await expect(model.predict(png(0), { imageSize })).rejects.toThrow(wrong)
    await expect(model.embed(png(0), { imageSize: 31 })).rejects.toThrow(wrong)
    const [none, number] = await model.predict([null, 5] as never)
    for (const result of [none, number]) expect(result).toMatchObject({ error: { code: 'EFF_INVALID_ARGUMENT' } })
    await expect(createModel('efficientnet_b0', { classes: ['a'], numClasses: 2 })).rejects.toThrow(code('EFF_CONFIG_VALUE'))
    for (const [classes, hint] of [
      [3, /^numClasses: 3$/],
      [0, /^classes: \['cat', 'dog'\], or numClasses: 2/],
      [-1, /^classes: /],
      ['abc', /^classes: /],
      [['a', 5], /^classes: /],
      [null, /^classes: /],
    ] as const) {
      const refused = createModel('efficientnet_b0', { classes: classes as never })
      await expect(refused).rejects.toMatchObject({
        code: 'EFF_CONFIG_VALUE',
        message: `classes = ${JSON.stringify(classes)}: a list of names`,
        hint: expect.stringMatching(hint),
      })
    }
    await expect(loadModel(root)).rejects.toThrow(code('EFF_CKPT_MISSING'))
    await expect(loadModel(file('0.jpg'))).rejects.toThrow(code('EFF_CKPT_MISSING'))
  })

  it('too large for an array of Node are refused before anything is made', () => {
    const config = getModelConfig('tf_efficientnet_b0', { numClasses: 1e6 })
    expect(() => checkTensorSizes(config, 2 ** 32)).toThrow(
      expect.objectContaining({
        code: 'EFF_CONFIG_VALUE',
        message: expect.stringMatching(/^numClasses = 1000000: .* 4\.8 GiB/),
        hint: 'numClasses: 838860 or fewer',
      }),
    )
    expect(() => checkTensorSizes(getModelConfig('tf_efficientnet_b0', { numClasses: 838860 }), 2 ** 32)).not.toThrow()
  })

  it('are listed by glob, with those whose weights are at hand', () => {
    expect(listModels({ filter: 'tf_efficientnet_b?', pretrained: true }).map((m) => m.name)).toEqual(['tf_efficientnet_b0'])
    expect(listModels({ filter: '*v2_s' })[0]).toMatchObject({ name: 'efficientnetv2_s', pretrained: false, numClasses: 1000 })
  })

  it('summarise themselves', () => {
    expect(model.summary()).toMatchObject({ name: 'tf_efficientnet_b0', params: 5_288_548, numClasses: 1000, imageSize: 224 })
    expect(model.parameters().find((p) => p.name === 'conv_stem.weight')).toMatchObject({ shape: [32, 3, 3, 3], size: 864 })
  })
})
