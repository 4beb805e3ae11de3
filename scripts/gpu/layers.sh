#!/usr/bin/env bash
# layers.ts on several models at once: the references are made by the host's cores. With "more", what the first call leaves out.
size() { if [ "${EFFNET_REHEARSE:-0}" = 1 ]; then echo 32; else echo "$1"; fi; }
at=$(mktemp -d)
run() { node dist/gpu-layers.mjs "$1" "$2" "$(size "$3")" 2 >"$at/$1-$2" 2>&1; }
if [ "${1:-}" = more ]; then
  run efficientnet_b0 f16 224 &
  run efficientnet_b4 f32 190 &
  run efficientnet_b4 f16 190 &
  run efficientnetv2_s f32 150 &
  run efficientnetv2_s f16 150 &
else
  run efficientnet_b0 bf16 224 &
  run efficientnet_b0 f32 224 &
  run efficientnet_b4 bf16 190 &
  run efficientnetv2_s bf16 150 &
fi
failed=0
for job in $(jobs -p); do wait "$job" || failed=1; done
cat "$at"/*
tail -qn 1 "$at"/* | paste -sd ';' -
rm -r "$at"
exit $failed
