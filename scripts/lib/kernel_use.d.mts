export interface Assembled {
  architecture: string
  kernel: string
  registers: number
  /** Bytes of a thread's stack and of spills. */
  spilled: number
}

export interface Block {
  registers: number
  threads: number
  /** Bytes. */
  shared: number
}

export function cuobjdump(folder: string, ...args: string[]): string[]
export function assembled(folder: string): Assembled[]
export function compiledThreads(folder: string, architecture: string): Map<string, number>
export function launched(file: string): Map<string, Omit<Block, 'registers'>>
export function residentBlocks(architecture: string, block: Block): number
