import { describe, expect, it } from 'vitest'
import { checkLibrary } from '../../ts/cli/doctor.js'

const library = {
  name: 'cuDNN',
  path: '',
  version: '',
  problem: '/opt/libcudnn.so.9 is 9.10.2, 9.19.0 or later is needed',
  without: 'dense convolutions use own kernels',
  mend: 'pip install nvidia-cudnn-cu13',
}

describe('libraries in the doctor', () => {
  it('shows version and path', () => {
    const found = { ...library, path: '/opt/libcudnn.so.9', version: '9.19.0', problem: '', without: '', mend: '' }
    expect(checkLibrary(found)).toEqual({ name: 'cuDNN', status: 'ok', value: '9.19.0, /opt/libcudnn.so.9' })
  })

  it('says what a missing one means, and is no failure', () => {
    expect(checkLibrary(library)).toEqual({
      name: 'cuDNN',
      status: 'warn',
      value: '/opt/libcudnn.so.9 is 9.10.2, 9.19.0 or later is needed: dense convolutions use own kernels',
      mend: 'pip install nvidia-cudnn-cu13',
    })
  })
})
