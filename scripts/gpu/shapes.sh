#!/usr/bin/env bash
# The layers of the models at their real sizes beside the references on the GPU; with "libraries" by NVIDIA's libraries wherever a plan
# would take them, else by the package's own kernels.
[ "${1:-}" = libraries ] && LINE_SECONDS=120
source scripts/gpu/parts.sh
file=shapes.txt
[ "${EFFNET_REHEARSE:-0}" = 1 ] && file=shapes-small.txt
export EFFNET_CUDA_PROVIDER=own
[ "${1:-}" = libraries ] && unset EFFNET_CUDA_PROVIDER
parts "$EFFNET_GPU_CHECK_LOGS/shapes${1:-}" tests/gpu_shapes_test $file {}
