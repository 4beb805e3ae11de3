/** A GPU with less memory than a model's weights, which it has from the moment it is opened: a process of its own. */
import { expect, it } from 'vitest'
import { createModel } from '../../ts/index.js'
import { describeWith, FAKE_DRIVER } from '../helpers/stand_in.js'

// Read when the driver is used first.
process.env['EFFNET_LIB_DIR'] = FAKE_DRIVER.folder
process.env['FAKE_CUDA_MEMORY'] = '5000000'

describeWith(FAKE_DRIVER, 'a GPU smaller than the weights', () => {
  it('is told as that', async () => {
    await expect(createModel('efficientnet_b0', { numClasses: 5, device: 'cuda' })).rejects.toMatchObject({
      code: 'EFF_OOM',
      message: expect.stringMatching(
        /^efficientnet_b0: its weights take 15\.\d MiB; 15\.\d MiB of GPU memory could not be allocated; \d.* of 4\.8 MiB are free$/,
      ),
      hint: 'a GPU with more memory than the 4.8 MiB of this one, or a smaller model: it is the weights, whatever the batch',
    })
  })
})
