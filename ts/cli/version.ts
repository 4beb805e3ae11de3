import { packageVersion } from '../version.js'
import { defineVerb } from './call.js'
import { EXIT } from './exit.js'
import { defineOptions } from './options.js'

const options = defineOptions({})

export const verb = defineVerb(
  {
    name: 'version',
    summary: 'versions of the package and its libraries',
    examples: ['effnet version', 'effnet version --json'],
    options,
  },
  async ({ ui }) => {
    const { binding } = await import('../binding.js')
    const native = binding().version()
    const versions = {
      effnet: packageVersion(),
      node: process.versions.node,
      platform: `${process.platform}-${process.arch}`,
      addon: native.addon,
      onednn: native.onednn,
      build: native.build,
    }
    if (ui.json) ui.object(versions)
    else for (const [name, version] of Object.entries(versions)) ui.answer(`${name.padEnd(9)} ${version}`)
    return EXIT.ok
  },
)
