#!/usr/bin/env bash
# Kernel tests under compute-sanitizer, one after another until the stage's end; skipped (75) where that is not installed. With
# "racecheck" its search for races.
tool=${1:-memcheck}
if ! command -v compute-sanitizer >/dev/null; then
  echo "compute-sanitizer is not installed"
  exit 75
fi
failed=()
cut=()
programs=(source_norm conv depthwise input_conv se merge bn update optimizer linear elementwise loss resample expand_depthwise conv_forms)
# Of each: one that takes long leaves time for the others.
limit=$([ "$tool" = racecheck ] && echo 25 || echo 12)
[ "${EFFNET_REHEARSE:-0}" = 1 ] && limit=3600
for name in "${programs[@]}"; do
  left=$((EFFNET_STAGE_END - $(date +%s)))
  if [ "$left" -lt 2 ]; then
    cut+=("$name")
    continue
  fi
  EFFNET_CUDA_PROVIDER=own EFFNET_RUNS_OF_A_FORM=1 timeout -k 1 $((limit < left ? limit : left)) compute-sanitizer --tool "$tool" --error-exitcode 9 "tests/gpu_${name}_test" --gtest_brief=1
  case $? in 0) ;; 124 | 137) cut+=("$name") ;; *) failed+=("$name") ;; esac
done
echo "$tool: ${#failed[@]} of ${#programs[@]} programs with errors ${failed[*]:-}; without an end in time: ${cut[*]:-none}"
[ ${#failed[@]} -eq 0 ]
