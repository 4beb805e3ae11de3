#!/usr/bin/env bash
# Every kernel test on the GPU; the failed ones by name in the last line.
failed=() passed=0
for test in tests/gpu_*_test; do
  if timeout -k 5 60 "$test" --gtest_brief=1; then passed=$((passed + 1)); else failed+=("$(basename "$test")"); fi
done
echo "$passed programs passed, ${#failed[@]} failed ${failed[*]:-}"
[ ${#failed[@]} -eq 0 ]
