/** Trains on a folder until a fault ends the process: argv = data folder, options as JSON. */
import { createModel, imageFolder, Trainer } from '../../../ts/index.js'

const [dir, options] = process.argv.slice(2) as [string, string]
const model = await createModel('tf_efficientnet_b0', { pretrained: true, numClasses: 3, seed: 1, threads: 2 })
await new Trainer({ ...JSON.parse(options), model }).fit(await imageFolder(dir))
process.stdout.write('survived')
