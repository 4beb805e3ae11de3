#!/usr/bin/env bash
# What cuDNN says that it can, done by it: the forward convolutions with bias, SiLU and residual, gradients of images, and of weights
# as wide as the images, beside float64 on the GPU. And the GPU as cuDNN describes it, which native/tests/gpus has by hand. Skipped
# (75) without cuDNN.
at=$EFFNET_GPU_CHECK_LOGS/rows
rm -rf "$at"
mkdir "$at"
tests/gpu_shapes_test device >"$EFFNET_GPU_CHECK_LOGS/device-properties.json"
code=$?
if [ $code -ne 0 ]; then
  tail -n 1 "$EFFNET_GPU_CHECK_LOGS/device-properties.json"
  exit $code
fi
for precision in f32 tf32 bf16 f16; do tests/gpu_shapes_test cudnn $precision >"$at/$precision" 2>&1 & done
failed=0
for job in $(jobs -p); do
  wait "$job"
  code=$?
  [ $code -eq 0 ] || [ $failed -eq 1 ] || failed=$([ $code -eq 76 ] && echo 76 || echo 1)
done
cat "$at"/*
tail -qn 1 "$at"/* | paste -sd ';' -
exit $failed
