/** Saves step 1, then step 2 with the fault of the environment: argv = folder, fault point. */
import { duplicateFolder, startFolder } from '../../../ts/train/checkpoint_folder.js'
import { content, folderIo } from './folder_io.js'

const [target, best, fault] = process.argv.slice(2) as [string, string, string]
await (await startFolder(folderIo, target, content(1, 'one'))).done
await duplicateFolder(folderIo, target, best)
process.env['EFFNET_FAULT'] = fault
await (await startFolder(folderIo, target, content(2, 'two'))).done
await duplicateFolder(folderIo, target, best)
process.stdout.write('survived')
