#!/usr/bin/env bash
# The layers of the models at their real sizes beside the references on the GPU, the precisions at once; with "libraries" by NVIDIA's
# libraries wherever a plan would take them, else by the package's own kernels. What a call has no time for is left to the next one:
# the stage is partial (76) until the last line of each precision is behind it.
source scripts/gpu/progress.sh
file=shapes.txt
[ "${EFFNET_REHEARSE:-0}" = 1 ] && file=shapes-small.txt
export EFFNET_CUDA_PROVIDER=own
[ "${1:-}" = libraries ] && unset EFFNET_CUDA_PROVIDER
at=$EFFNET_GPU_CHECK_LOGS/shapes${1:-}
precisions=(f32 tf32 bf16 f16)
# PRECISION.next: the line to go on with, or "end". PRECISION.wrong: some part of the lines had one that was off.
at_end() { [ "$(cat "$at"/*.next 2>/dev/null | grep -c end)" -eq ${#precisions[@]} ]; }
any_wrong() { ls "$at"/*.wrong >/dev/null 2>&1; }
progress "$at"
if at_end && any_wrong; then # once more
  rm -rf "$at"
  progress "$at"
fi
check() {
  local precision=$1 from code
  from=$(cat "$at/$precision.next" 2>/dev/null || echo 0)
  [ "$from" = end ] && return
  tests/gpu_shapes_test $file "$precision" "$from" $((EFFNET_STAGE_END - 4)) >"$at/$precision.last" 2>&1
  code=$?
  { [ "$from" = 0 ] || echo "from line $from:"; cat "$at/$precision.last"; } >>"$at/$precision.log"
  [ $code -eq 0 ] || touch "$at/$precision.wrong"
  # A program that says neither has broken off: the next call begins with the same line.
  case $(tail -n 1 "$at/$precision.last") in
    *", to the end") echo end >"$at/$precision.next" ;;
    *", go on with line "*) sed -n '$s/.*go on with line \([0-9]*\) of.*/\1/p' "$at/$precision.last" >"$at/$precision.next" ;;
  esac
}
for precision in "${precisions[@]}"; do check "$precision" & done
wait
cat "$at"/*.log
tail -qn 1 "$at"/*.log | paste -sd ';' -
any_wrong && exit 1
at_end || exit 76
