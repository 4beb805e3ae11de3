import { describe, expect, it } from 'vitest'
import { selectNames } from '../../ts/infer/freeze.js'
import { imagenetLabels } from '../../ts/infer/labels.js'
import { normalizePrecision } from '../../ts/infer/precision.js'
import { deviceName } from '../../ts/runtime/device.js'

const names = [
  'conv_stem.weight',
  'blocks.0.0.bn1.weight',
  'blocks.1.0.conv_pw.weight',
  'blocks.10.0.bn1.bias',
  'classifier.weight',
  'classifier.bias',
]

describe('freeze selectors', () => {
  it.each([
    ['all', names.length],
    ['backbone', 4],
    ['blocks.1', 1],
    ['blocks.[01].*', 2],
    ['*.bias', 2],
    ['classifier.weight', 1],
    [/bn\d/g, 2],
    [(name: string) => name.endsWith('weight'), 4],
  ])('%s selects %d', (selector, count) => {
    expect(selectNames(names, selector).length).toBe(count)
  })

  it('that match nothing, or are no globs, are errors', () => {
    for (const selector of ['block.1', 'blocks.[3-0].*', 'blocks.[0*']) {
      expect(() => selectNames(names, selector), selector).toThrow(expect.objectContaining({ code: 'EFF_INVALID_ARGUMENT' }))
    }
  })
})

describe('names that must be accepted', () => {
  it.each([
    ['fp32', 'fp32'],
    ['32-true', 'fp32'],
    [32, 'fp32'],
    ['tf32', 'tf32'],
    [16, 'fp16-mixed'],
    ['16-mixed', 'fp16-mixed'],
    ['fp16-mixed', 'fp16-mixed'],
    ['bf16', 'bf16-mixed'],
    ['bf16-mixed', 'bf16-mixed'],
  ])('precision %s', (given, name) => {
    expect(normalizePrecision(given)).toBe(name)
  })

  it('what there is not is refused, never replaced', () => {
    expect(() => normalizePrecision('fp8')).toThrow(expect.objectContaining({ code: 'EFF_PRECISION' }))
    for (const wrong of ['gpu', 'cuda:', 'cuda:x', 'cuda:-1', 'CPU'])
      expect(() => deviceName(wrong)).toThrow(expect.objectContaining({ code: 'EFF_CONFIG_VALUE' }))
    expect(['auto', 'cpu', 'cuda', 'cuda:0', 'cuda:12'].map(deviceName)).toEqual(['cpu', 'cpu', 'cuda:0', 'cuda:0', 'cuda:12'])
  })
})

describe('ImageNet labels', () => {
  it('are 1000, in class order', () => {
    const labels = imagenetLabels()
    expect(labels.length).toBe(1000)
    expect(labels[0]).toBe('tench, Tinca tinca')
    expect(labels[999]).toMatch(/^toilet tissue/)
    expect([labels[134], labels[517]]).toEqual(['crane', 'crane'])
    expect(new Set(labels).size).toBe(999)
  })
})
