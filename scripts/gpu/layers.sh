#!/usr/bin/env bash
# layers.ts on several types and models at once: the references are made by the host's cores, so the images are small. What only this
# shows: squeeze-and-excitation, pooling, classifier and loss, and every op with the values that it meets in a step.
size() { if [ "${EFFNET_REHEARSE:-0}" = 1 ]; then echo 40; else echo "$1"; fi; } # at 32 BN is over two values, whose gradients FP16 has no room for
at=$EFFNET_GPU_CHECK_LOGS/layers
rm -rf "$at"
mkdir "$at"
run() { node dist/gpu-layers.mjs "$1" "$2" "$(size "$3")" 2 >"$at/$1-$2" 2>&1; }
run efficientnet_b0 bf16 112 &
run efficientnet_b0 f16 112 &
run efficientnet_b0 f32 112 &
run efficientnetv2_s bf16 64 &
failed=0
for job in $(jobs -p); do wait "$job" || failed=1; done
cat "$at"/*
tail -qn 1 "$at"/* | paste -sd ';' -
exit $failed
