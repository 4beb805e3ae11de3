#!/usr/bin/env bash
# What cuDNN says that it can, done by it: the forward convolutions with bias, SiLU and residual, gradients of images, and of weights
# as wide as the images, beside float64 on the GPU. And the GPU as cuDNN describes it, which native/tests/gpus has by hand. Skipped
# (75) without cuDNN.
LINE_SECONDS=120
source scripts/gpu/parts.sh
tests/gpu_shapes_test device >"$EFFNET_GPU_CHECK_LOGS/device-properties.json"
code=$?
if [ $code -ne 0 ]; then
  tail -n 1 "$EFFNET_GPU_CHECK_LOGS/device-properties.json"
  exit $code
fi
parts "$EFFNET_GPU_CHECK_LOGS/rows" tests/gpu_shapes_test cudnn {}
