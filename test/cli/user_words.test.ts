/** Messages of the library in the words of the command line. */
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { programName } from '../../ts/cli/program.js'
import { asTyped, userWords } from '../../ts/cli/user_words.js'

describe('words of the library become words of the command line', () => {
  it.each([
    ["device 'cpu'", '--device cpu'],
    ["device 'cuda:0'", '--device cuda:0'],
    ["npm run setup; or device 'cpu'", 'npm run setup; or --device cpu'],
    ['a lower lr, longer warm-up or clipNorm: 1', 'a lower --lr, a longer --warmup-epochs or --clip-norm 1'],
    ['batchSize 4 is more than the 1 training images', '--batch-size 4 is more than the 1 training images'],
    ['maxTime: "soon" is no duration', '--max-time "soon" is no duration'],
    ['or raise maxBad', 'or raise --max-bad'],
    [
      'options changed: optimizer.lr was 0.001 and is 0.5, batchSize was 4 and is 8, seed was 0 and is 1',
      'options changed: --lr was 0.001 and is 0.5, --batch-size was 4 and is 8, --seed was 0 and is 1',
    ],
    ['createModel(name, { pretrained: file })   (--model NAME --weights FILE)', '--model NAME --weights FILE'],
    ['hold images out with valSplit (--val-split 0.1)', 'hold images out with --val-split 0.1'],
    ["dataBackend: 'cpu', or createModel(name, { device: 'cuda' })", '--data-backend cpu, or --device cuda'],
    ["dataBackend 'gpu' needs nvJPEG", '--data-backend gpu needs nvJPEG'],
    ["optimizer: 'sgd'", '--optimizer sgd'],
    ['model.freeze with the same selection (--freeze)', '--freeze with the same selection'],
    ["resume: 'auto' (--resume) starts where there is none", '--resume starts where there is none'],
    ['maxBad_files stays', 'maxBad_files stays'],
    ['photos/batchSize.jpg: no such file', 'photos/batchSize.jpg: no such file'],
  ])('%s', (library, user) => {
    expect(userWords(library)).toBe(user)
  })

  it('every mend in the sources', () => {
    const root = path.resolve(fileURLToPath(import.meta.url), '../../../ts')
    const left: string[] = []
    for (const file of readdirSync(root, { recursive: true, encoding: 'utf8' })) {
      // Those of the public API's own arguments: a command line does not reach them.
      if (!file.endsWith('.ts') || file.startsWith('cli/') || file.startsWith('graph/')) continue
      const source = readFileSync(path.join(root, file), 'utf8')
      for (const [, quote] of source.matchAll(/\bhint:\s*((?:'[^'\n]*')|(?:"[^"\n]*")|(?:`[^`\n]*`))/g)) {
        const hint = quote!.slice(1, -1).replace(/\$\{[^}]*\}/g, 'x1')
        const words = userWords(hint.replaceAll('numClasses: x1', 'numClasses: 7'))
        if (/\b(createModel|loadModel|[a-z]+[A-Z]\w*)\b/.test(words.replace(/\b(model|trainer|save)\S*\(.*/, '')))
          left.push(`${file}: ${words}`)
      }
    }
    expect(left).toEqual([])
  })
})

describe('commands as this user types them', () => {
  it('names npx where effnet alone is not found', () => {
    expect(programName({ npm_command: 'exec', PATH: '/usr/bin' })).toBe('npx effnet')
    expect(programName({ PATH: '/nowhere' })).toBe('npx effnet')
    expect(programName({})).toBe('npx effnet')
  })

  it('leaves names and prose alone', () => {
    const text = 'effnet train --data x   or `effnet models list` (effnet doctor); a bug in effnet: report it'
    expect(asTyped(text, 'effnet')).toBe(text)
    expect(asTyped(text, 'npx effnet')).toBe(
      'npx effnet train --data x   or `npx effnet models list` (npx effnet doctor); a bug in effnet: report it',
    )
  })
})
