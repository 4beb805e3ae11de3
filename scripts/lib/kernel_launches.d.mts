export const TRAINING: {
  optimizer: { name: 'rmsprop_tf' }
  labelSmoothing: number
  dropRate: number
  dropPathRate: number
  ema: boolean
  clip: boolean
}
export function launchNetworks(
  file: string,
  tell?: (name: string) => void,
  networks?: [name: string, imageSize: number][],
  precisions?: string[],
): Promise<void>
