/**
 * A strict JSON parser for untrusted headers. Unlike JSON.parse it refuses duplicate keys, keeps integers exact (or refuses
 * them), makes objects without prototype and bounds the depth. Numbers are non-negative integers up to 2^53 - 1.
 */

export type Json = null | boolean | number | string | Json[] | JsonObject
export type JsonObject = Map<string, Json>

/** What is wrong with a text, and where. */
export class JsonError extends Error {
  constructor(
    message: string,
    readonly position: number,
    /** Keys and indices that lead to the place. */
    readonly path: readonly string[],
  ) {
    super(message)
  }
}

const MAX_DEPTH = 16
const WORDS = [
  ['null', null],
  ['true', true],
  ['false', false],
] as const
const NUMBER = /-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/y
const ESCAPES: Record<string, string> = { '"': '"', '\\': '\\', '/': '/', b: '\b', f: '\f', n: '\n', r: '\r', t: '\t' }

export function parseJson(text: string): Json {
  const parser = new Parser(text)
  const value = parser.value(0)
  parser.end()
  return value
}

class Parser {
  private at = 0
  private readonly path: string[] = []

  constructor(private readonly text: string) {}

  private fail(message: string): never {
    throw new JsonError(message, this.at, [...this.path])
  }

  private space(): void {
    for (;;) {
      const c = this.text.charCodeAt(this.at)
      if (c !== 0x20 && c !== 0x0a && c !== 0x0d && c !== 0x09) return
      this.at++
    }
  }

  /** The next character after white space; empty at the end. */
  private peek(): string {
    this.space()
    return this.text.charAt(this.at)
  }

  private expect(c: string): void {
    if (this.peek() !== c) this.fail(`expected ${c}, found ${this.text.charAt(this.at) || 'the end'}`)
    this.at++
  }

  end(): void {
    if (this.peek() !== '') this.fail('text after the value')
  }

  value(depth: number): Json {
    if (depth > MAX_DEPTH) this.fail(`nested deeper than ${MAX_DEPTH}`)
    const c = this.peek()
    if (c === '{') return this.object(depth)
    if (c === '[') return this.array(depth)
    if (c === '"') return this.string()
    if (c === '-' || (c >= '0' && c <= '9')) return this.integer()
    for (const [word, value] of WORDS) {
      if (this.text.startsWith(word, this.at)) {
        this.at += word.length
        return value
      }
    }
    return this.fail(c === '' ? 'unexpected end' : `unexpected ${c}`)
  }

  private object(depth: number): JsonObject {
    const result: JsonObject = new Map()
    this.expect('{')
    if (this.peek() === '}') {
      this.at++
      return result
    }
    for (;;) {
      if (this.peek() !== '"') this.fail('expected a name in quotes')
      const key = this.string()
      this.path.push(key)
      if (result.has(key)) this.fail('duplicate name')
      this.expect(':')
      result.set(key, this.value(depth + 1))
      this.path.pop()
      if (this.peek() !== ',') break
      this.at++
    }
    this.expect('}')
    return result
  }

  private array(depth: number): Json[] {
    const result: Json[] = []
    this.expect('[')
    if (this.peek() === ']') {
      this.at++
      return result
    }
    for (;;) {
      this.path.push(String(result.length))
      result.push(this.value(depth + 1))
      this.path.pop()
      if (this.peek() !== ',') break
      this.at++
    }
    this.expect(']')
    return result
  }

  private string(): string {
    const { text } = this
    let result = ''
    let suspect = false
    let start = ++this.at
    for (;;) {
      const c = text.charCodeAt(this.at)
      if (c !== 0x22 && c !== 0x5c) {
        if (Number.isNaN(c)) this.fail('unterminated string')
        if (c < 0x20) this.fail('control character in a string')
        if (c >= 0xd800) suspect = true
        this.at++
        continue
      }
      result += text.slice(start, this.at)
      this.at++
      if (c === 0x22) {
        if (suspect && !wellFormed(result)) this.fail('lone surrogate in a string')
        return result
      }
      result += this.escape()
      suspect = true
      start = this.at
    }
  }

  private escape(): string {
    const c = this.text.charAt(this.at++)
    if (c === 'u') {
      const hex = this.text.slice(this.at, this.at + 4)
      if (!/^[0-9a-fA-F]{4}$/.test(hex)) this.fail('bad \\u escape')
      this.at += 4
      return String.fromCharCode(Number.parseInt(hex, 16))
    }
    return ESCAPES[c] ?? this.fail(`bad escape \\${c}`)
  }

  private integer(): number {
    const { text, at } = this
    // Digits alone, few enough to be exact.
    let end = at
    let value = 0
    for (let c = text.charCodeAt(end); c >= 0x30 && c <= 0x39 && end - at < 15; c = text.charCodeAt(++end))
      value = value * 10 + c - 0x30
    const next = text.charCodeAt(end)
    if (end > at && (next === 0x2c || next === 0x5d) && (end === at + 1 || text.charCodeAt(at) !== 0x30)) {
      this.at = end
      return value
    }
    NUMBER.lastIndex = at
    const word = NUMBER.exec(text)?.[0] ?? this.fail('bad number')
    if (!/^(0|[1-9]\d*)$/.test(word)) this.fail(`${word.slice(0, 40)} is not a non-negative integer`)
    if (word.length > 16 || Number(word) > Number.MAX_SAFE_INTEGER) this.fail(`${word.slice(0, 40)} is beyond 2^53 - 1`)
    this.at += word.length
    return Number(word)
  }
}

/** Every surrogate has its partner (String.prototype.isWellFormed is not in ES2023's library). */
const wellFormed = (s: string): boolean => !/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/.test(s)
