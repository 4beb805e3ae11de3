export function launchNetworks(
  file: string,
  tell?: (name: string) => void,
  networks?: [name: string, imageSize: number][],
  precisions?: string[],
): Promise<void>
