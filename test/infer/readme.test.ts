/** The example of the README as strict TypeScript has it, and the types it leans on. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import ts from 'typescript'
import { expect, expectTypeOf, it } from 'vitest'
import type { ClassScore, EmbeddingResult, PredictionResult } from '../../ts/index.js'
import { packageRoot } from '../../ts/paths.js'

const root = packageRoot()

/** What the compiler says of a file `name` in this folder. */
function complaints(source: string): string[] {
  const name = path.join(root, 'test/infer/example.ts')
  const { config } = ts.readConfigFile(path.join(root, 'tsconfig.json'), ts.sys.readFile)
  const { options } = ts.convertCompilerOptionsFromJson({ ...config.compilerOptions, noEmit: true, rootDir: '.' }, root)
  const host = ts.createCompilerHost(options)
  const { fileExists, readFile, getSourceFile } = host
  host.fileExists = (file) => file === name || fileExists(file)
  host.readFile = (file) => (file === name ? source : readFile(file))
  host.getSourceFile = (file, ...more) =>
    file === name ? ts.createSourceFile(file, source, ts.ScriptTarget.ES2022) : getSourceFile(file, ...more)
  const program = ts.createProgram([name], options, host)
  const file = program.getSourceFile(name)
  return [...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file)].map((d) =>
    ts.flattenDiagnosticMessageText(d.messageText, '\n'),
  )
}

it('the ten lines compile', () => {
  const [, example] = /## Ten lines\n\n```js\n([\s\S]*?)```/.exec(readFileSync(path.join(root, 'README.md'), 'utf8'))!
  const source = example!.replace("'effnet-native'", "'../../ts/index.js'")
  expect(source).toContain('ts/index.js')
  expect(complaints(source)).toEqual([])
  expect(complaints(`${source}\nfirst.topk.length`)).toHaveLength(2)
}, 60_000)

it('a result may be asked for its classes, and `error` tells the two kinds apart', () => {
  const result = {} as PredictionResult
  expectTypeOf(result.topk).toEqualTypeOf<ClassScore[] | undefined>()
  if (result.error) expectTypeOf(result.error.message).toEqualTypeOf<string>()
  else expectTypeOf(result.topk).toEqualTypeOf<ClassScore[]>()
  const embedding = {} as EmbeddingResult
  if (!embedding.error) expectTypeOf(embedding.features).toEqualTypeOf<Float32Array>()
})
