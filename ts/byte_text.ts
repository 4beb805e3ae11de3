/** Sizes as messages have them: "37 bytes", "1.5 KiB", "15.4 MiB", "2.0 GiB", never 0.0 of something. native/core/byte_text.h has the same. */
export function byteText(bytes: number): string {
  if (bytes < 1024) return `${bytes} byte${bytes === 1 ? '' : 's'}`
  let amount = bytes / 1024
  let unit = 'KiB'
  for (const larger of ['MiB', 'GiB']) {
    if (amount < 1023.95) break
    amount /= 1024
    unit = larger
  }
  return `${amount.toFixed(1)} ${unit}`
}
