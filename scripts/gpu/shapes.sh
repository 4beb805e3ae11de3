#!/usr/bin/env bash
# The layers of the models at their real sizes beside the references on the GPU, the precisions at once; with "libraries" by NVIDIA's
# libraries wherever a plan would take them, else by the package's own kernels.
file=shapes.txt
[ "${EFFNET_REHEARSE:-0}" = 1 ] && file=shapes-small.txt
export EFFNET_CUDA_PROVIDER=own
[ "${1:-}" = libraries ] && unset EFFNET_CUDA_PROVIDER
at=$EFFNET_GPU_CHECK_LOGS/shapes${1:-}
rm -rf "$at"
mkdir "$at"
for precision in f32 tf32 bf16 f16; do tests/gpu_shapes_test $file $precision >"$at/$precision" 2>&1 & done
failed=0
for job in $(jobs -p); do wait "$job" || failed=1; done
cat "$at"/*
tail -qn 1 "$at"/* | paste -sd ';' -
exit $failed
