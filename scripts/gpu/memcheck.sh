#!/usr/bin/env bash
# Kernel tests under compute-sanitizer, one for each core since their references are made by the host, until the stage's end. With
# "racecheck" its search for races. A later call runs those that did not come to their end, for which the stage is partial (76), and those
# with errors. Skipped (75) where the tool is not installed or gets no device.
source scripts/gpu/progress.sh
tool=${1:-memcheck}
if ! command -v compute-sanitizer >/dev/null; then
  echo "compute-sanitizer is not installed"
  exit 75
fi
at=$EFFNET_GPU_CHECK_LOGS/$tool
progress "$at"
# A program that checks all that the driver says tells itself of calls that fail.
options=(--tool "$tool" --error-exitcode 9)
if [ "$tool" = memcheck ] && compute-sanitizer --help 2>&1 | grep -q -- --report-api-errors; then options+=(--report-api-errors no); fi

# What passes without the tool (smoke has seen it) and fails under it without an error of a kernel: the tool has no device.
timeout -k 1 30 compute-sanitizer "${options[@]}" tests/gpu_instructions_test --gtest_brief=1 --gtest_filter=Instructions.OfDoubles >"$at/probe.log" 2>&1
code=$?
if [ $code -ne 0 ] && ! grep -qE 'Invalid __|hazard' "$at/probe.log"; then
  cat "$at/probe.log"
  echo "compute-sanitizer cannot look at this GPU (exit code $code): $(grep -m 1 -E 'Error|not supported|Unable' "$at/probe.log" | cut -c1-200)"
  exit 75
fi

one() {
  local left=$((EFFNET_STAGE_END - $(date +%s)))
  rm -f "$1/$2.code"
  [ "$left" -lt 2 ] && return
  EFFNET_CUDA_PROVIDER=own EFFNET_RUNS_OF_A_FORM=1 timeout -k 1 "$left" compute-sanitizer "${@:3}" "tests/gpu_$2_test" --gtest_brief=1 >"$1/$2.log" 2>&1
  local code=$?
  case $code in 124 | 137) ;; *) echo $code >"$1/$2.code" ;; esac
}
export -f one
programs=(source_norm conv depthwise input_conv se merge bn update optimizer linear elementwise loss resample expand_depthwise conv_forms)
for name in "${programs[@]}"; do [ "$(cat "$at/$name.code" 2>/dev/null)" = 0 ] || echo "$name"; done | xargs -P "$(nproc)" -I{} bash -c 'one "$@"' _ "$at" {} "${options[@]}"

failed=()
cut=()
for name in "${programs[@]}"; do
  case $(cat "$at/$name.code" 2>/dev/null) in 0) ;; '') cut+=("$name") ;; *) failed+=("$name") && cat "$at/$name.log" ;; esac
done
echo "$tool: $((${#programs[@]} - ${#cut[@]})) of ${#programs[@]} programs to their end, ${#failed[@]} with errors${failed[*]:+: ${failed[*]}}${cut[*]:+; not to their end: ${cut[*]}}"
[ ${#failed[@]} -eq 0 ] || exit 1
[ ${#cut[@]} -eq 0 ] || exit 76
