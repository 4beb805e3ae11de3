/**
 * The lines of `shapeLines` (test/helpers/layer_shapes.ts). Bundled by pack.mjs.
 *
 *   shapes.mjs [SIDE]     SIDE: for a rehearsal, on such images a few of each op
 */
import { sample, shapeLines } from '../../test/helpers/layer_shapes.js'

const side = process.argv[2]
const lines = side === undefined ? shapeLines() : sample(shapeLines(Number(side)), 3)
process.stdout.write(`${lines.join('\n')}\n`)
