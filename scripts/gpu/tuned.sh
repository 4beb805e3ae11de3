#!/usr/bin/env bash
# Training of bench.mjs with measured kernels; what was measured and chosen is kept beside the log.
EFFNET_CUDA_TUNE=1 EFFNET_BENCH_MODE=train node scripts/gpu/bench.mjs
code=$?
cp -r "$EFFNET_CACHE_DIR/kernels" "$EFFNET_GPU_CHECK_LOGS/tuned" 2>/dev/null
exit $code
