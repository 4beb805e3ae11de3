#!/usr/bin/env bash
# bench.mjs with measured kernels, and PyTorch's anchor in front of it, for other calls' figures of PyTorch to be compared with. What is
# measured and chosen lies among the logs from the start, so that a call that goes on has it: one with the same archive, since other kernels
# have other times.
source scripts/gpu/progress.sh
export EFFNET_CACHE_DIR=$EFFNET_GPU_CHECK_LOGS/tuned
progress "$EFFNET_CACHE_DIR"
bash scripts/gpu/peer.sh --anchor
# Rehearsing, fewer kernels to measure.
[ "${EFFNET_REHEARSE:-0}" = 1 ] && export EFFNET_BENCH_MODE=infer
EFFNET_CUDA_TUNE=1 exec node scripts/gpu/bench.mjs
