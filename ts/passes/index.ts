/**
 * Graph to graph to plan. Training: fuseTraining, then the loss, autodiff, fuseBackward, appendOptimizer, eliminateDead, recompute,
 * gateInConvolution, planMemory, emit. Inference: foldBn, eliminateDead, imageRegion, planMemory, emit. autodiff and
 * appendOptimizer append to the graph they are given; the others return a new one, in which a tensor that survives keeps its name
 * (`Graph.find`).
 */
export { type AutodiffOptions, autodiff } from './autodiff.js'
export { eliminateDead } from './eliminate_dead.js'
export { foldBn } from './fold_bn.js'
export { fuseBackward, fuseTraining, type Target } from './fuse.js'
export { gateInConvolution } from './gate_in_convolution.js'
export { type ImageRegion, imageRegion } from './image_region.js'
export { appendOptimizer, type OptimizerSpec } from './optimizer.js'
export { type RecomputePolicy, recompute } from './recompute.js'
export { markOutputs } from './rewrite.js'
