/** What tests of short runs start from: a small data set, for each test a new model of it and an empty folder. */
import { mkdtemp, rm } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { afterAll, afterEach } from 'vitest'
import { imageFolder } from '../../../ts/data/image_folder.js'
import type { ImageFolder } from '../../../ts/data/types.js'
import { createModel, type Model } from '../../../ts/model.js'
import { workplace } from '../../cli/helpers/folders.js'

export interface SmallRun {
  data: ImageFolder
  /** EfficientNet-B0 at 32 px with one engine thread; closed after the test. */
  model: Model
  out: string
}

/** To be called once a file; what it returns, once before each test. */
export function smallRuns(): () => Promise<SmallRun> {
  const w = workplace()
  w.dataset('data')
  afterAll(() => w.remove())
  let open: SmallRun | undefined
  afterEach(async () => {
    await open?.model.close()
    if (open) await rm(open.out, { recursive: true, force: true })
    open = undefined
  })
  return async () => {
    const data = await imageFolder(w.at('data'))
    const model = await createModel('efficientnet_b0', { classes: data.classes, imageSize: 32, threads: 1 })
    open = { data, model, out: await mkdtemp(path.join(os.tmpdir(), 'effnet-run-')) }
    return open
  }
}
