/** Says it is there, takes the lock of the folder in argv at the first line of stdin, and holds it until stdin ends. */
import { EffnetError } from '../../../ts/errors.js'
import { RunLock } from '../../../ts/train/run_lock.js'

const [dir] = process.argv.slice(2) as [string]
process.stdout.write('there')
process.stdin.once('data', async () => {
  const answer = await RunLock.take(dir).then(
    () => 'taken',
    (cause) => (cause instanceof EffnetError ? cause.code : String(cause)),
  )
  process.stdout.write(answer)
})
