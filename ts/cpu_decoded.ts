/** What a user is told of files that nvJPEG left to the CPU. */
export const cpuDecodedText = (files: number, shown = String(files)): string =>
  `${shown} ${files === 1 ? 'file was' : 'files were'} decoded on the CPU: nvJPEG does not take ${files === 1 ? 'it' : 'them'}`
