// Fine-tunes EfficientNet-B0 on a folder of images: node examples/finetune.mjs FOLDER [RUN_FOLDER]
import { createModel, imageFolder, Trainer } from 'effnet-native'

const [folder = 'models/demo', outDir = 'runs/finetune'] = process.argv.slice(2)
const data = await imageFolder(folder)
const model = await createModel('tf_efficientnet_b0', { pretrained: true, classes: data.classes, imageSize: 64 })
const trainer = new Trainer({ model, lr: 1e-3, maxEpochs: 4, outDir })
const result = await trainer.fit(data)
console.log(`top-1 ${result.metrics['val/top1'].toFixed(2)} %`, result.checkpoint)
await model.close()
