#!/usr/bin/env bash
# Training of bench.mjs with measured kernels; what was measured and chosen is kept beside the log.
mode=train
[ "${EFFNET_REHEARSE:-0}" = 1 ] && mode=infer # fewer kernels to measure
EFFNET_CUDA_TUNE=1 EFFNET_BENCH_MODE=$mode node scripts/gpu/bench.mjs
code=$?
rm -rf "$EFFNET_GPU_CHECK_LOGS/tuned"
cp -r "$EFFNET_CACHE_DIR/kernels" "$EFFNET_GPU_CHECK_LOGS/tuned" 2>/dev/null
exit $code
