import { byteText } from './byte_text.js'

/** What a user is told of files that nvJPEG left to the CPU. */
export const cpuDecodedText = (files: number, shown = String(files)): string =>
  `${shown} ${files === 1 ? 'file was' : 'files were'} decoded on the CPU: nvJPEG does not take ${files === 1 ? 'it' : 'them'}`

/** What a run says of a host without page-locked memory. */
export const unlockedText = (bytes: number): string =>
  `${byteText(bytes)} for copies to the GPU were ordinary memory: the host had no page-locked memory left, so copies were slower`
