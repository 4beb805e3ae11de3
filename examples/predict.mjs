// Names what is on photos: node examples/predict.mjs PHOTO...
import { createModel } from 'effnet-native'

const model = await createModel('tf_efficientnet_b0', { pretrained: true })
for (const { path, topk, error } of await model.predict(process.argv.slice(2), { topK: 3 })) {
  console.log(path, error?.message ?? topk.map((t) => `${t.label} ${(100 * t.score).toFixed(1)} %`).join(', '))
}
await model.close()
