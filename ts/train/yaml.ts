import { EffnetError } from '../errors.js'

/**
 * An object in a YAML file of a run; {} where the file is empty.
 * @throws EFF_CKPT_CORRUPT with the line
 */
export async function parseYaml(file: string, text: string): Promise<Record<string, unknown>> {
  const { parse } = await import('yaml')
  const fail = (why: string, cause?: unknown): never => {
    throw new EffnetError('EFF_CKPT_CORRUPT', `${file}: ${why}`, {
      hint: `mend it, or remove it: rm ${file}`,
      details: { path: file },
      cause,
    })
  }
  let value: unknown
  try {
    value = parse(text)
  } catch (cause) {
    // The first line says what and where; the others show the place.
    return fail(`not YAML: ${(cause as Error).message.split('\n')[0]!.replace(/:$/, '')}`)
  }
  if (value === null) return {}
  return typeof value === 'object' && !Array.isArray(value) ? (value as Record<string, unknown>) : fail('it holds no options')
}
