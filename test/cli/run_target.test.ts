/** Which folder a run gets, and the options of one that goes on. */
import { lstatSync, mkdirSync, readdirSync, readlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { runTarget } from '../../ts/cli/run_target.js'
import type { TrainValues } from '../../ts/cli/train_options.js'
import { effnet } from './helpers/capture.js'
import { workplace } from './helpers/folders.js'

const graces: (() => number)[] = []
vi.mock('../../ts/cli/signals.js', () => ({
  handleSignals: (_: unknown, grace: () => number) => {
    graces.push(grace)
    return () => undefined
  },
}))

const w = workplace()
const before = process.cwd()
afterAll(() => w.remove())
afterEach(() => {
  process.chdir(before)
  vi.useRealTimers()
})

const target = (given: Partial<TrainValues>) => runTarget(given as TrainValues)
const MODEL = 'efficientnet_b0'

describe('a new run without --out', () => {
  beforeEach(() => {
    mkdirSync(w.at('here'), { recursive: true })
    process.chdir(w.at('here'))
    vi.useFakeTimers({ toFake: ['Date'], now: new Date(2026, 0, 2, 3, 4, 5) })
  })

  it('has a folder of its own, though others begin in the same second; latest is the last of them', async () => {
    const runs = await Promise.all([1, 2, 3].map(async () => (await target({})).outDir(MODEL)))
    const name = `${MODEL}-20260102-030405`
    expect(runs.map((run) => path.relative(process.cwd(), run)).sort()).toEqual(
      [name, `${name}-2`, `${name}-3`].map((n) => `runs/classify/${n}`),
    )
    for (const run of runs) expect(readdirSync(run)).toEqual([])
    const next = await (await target({})).outDir(MODEL)
    expect(readlinkSync('runs/classify/latest')).toBe(path.basename(next))
  })

  it('leaves a folder that is called latest to its owner', async () => {
    mkdirSync(w.at('own/runs/classify/latest'), { recursive: true })
    process.chdir(w.at('own'))
    await (await target({})).outDir(MODEL)
    expect(lstatSync('runs/classify/latest').isDirectory()).toBe(true)
  })

  it('makes nothing where it is only planned', async () => {
    mkdirSync(w.at('empty'))
    process.chdir(w.at('empty'))
    const { planned } = await target({})
    expect(path.relative(process.cwd(), planned(MODEL))).toBe(`runs/classify/${MODEL}`)
    expect(readdirSync('.')).toEqual([])
  })
})

describe('a run that goes on', () => {
  const run = (name: string, config: string): string => {
    mkdirSync(w.at(name, 'checkpoints'), { recursive: true })
    writeFileSync(w.at(name, 'config.yaml'), config)
    return w.at(name)
  }

  it('keeps the options it was begun with where none are given', async () => {
    const resume = run('cli', 'data: /photos\nmodel: efficientnet_b1\nepochs: 7\ngrace: 90\n')
    expect((await target({ resume, epochs: 9 })).options).toMatchObject({ data: '/photos', epochs: 9, grace: 90 })
  })

  it('is refused where a program began it: its options are others', async () => {
    const resume = run('library', 'model: efficientnet_b0\nmaxEpochs: 3\nrecipe: finetune\n')
    const refused = { code: 'EFF_CONFIG_VALUE', message: expect.stringMatching(/begun by a program/) }
    await expect(target({ resume })).rejects.toMatchObject(refused)
    await expect(target({ resume: '', out: resume })).rejects.toMatchObject(refused)
  })

  it('is refused where config.yaml is no YAML', async () => {
    const resume = run('torn', 'data: "photos\nmodel: [\n')
    await expect(target({ resume })).rejects.toMatchObject({
      code: 'EFF_CKPT_CORRUPT',
      message: expect.stringMatching(/config\.yaml: not YAML/),
    })
  })

  it('gives SIGTERM the grace it was begun with', async () => {
    const resume = run('grace', `data: ${w.at('gone')}\nmodel: ${MODEL}\ngrace: 90\n`)
    expect((await effnet(['train', '--resume', resume])).code).toBe(66)
    expect(graces.at(-1)!()).toBe(90_000)
    expect((await effnet(['train', '--resume', resume, '--grace', '7'])).code).toBe(66)
    expect(graces.at(-1)!()).toBe(7000)
    expect((await effnet(['train', '--data', w.at('gone'), '--model', MODEL])).code).toBe(66)
    expect(graces.at(-1)!()).toBe(25_000)
  })
})
