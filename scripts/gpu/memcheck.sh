#!/usr/bin/env bash
# Kernel tests under compute-sanitizer; skipped (75) where that is not installed. With "racecheck" its search for races.
tool=${1:-memcheck}
if ! command -v compute-sanitizer >/dev/null; then
  echo "compute-sanitizer is not installed"
  exit 75
fi
failed=()
programs=(source_norm conv depthwise elementwise optimizer)
for name in "${programs[@]}"; do
  EFFNET_RUNS_OF_A_FORM=1 compute-sanitizer --tool "$tool" --error-exitcode 9 "tests/gpu_${name}_test" --gtest_brief=1 || failed+=("$name")
done
echo "$tool: ${#failed[@]} of ${#programs[@]} programs with errors ${failed[*]:-}"
[ ${#failed[@]} -eq 0 ]
