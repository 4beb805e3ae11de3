#!/usr/bin/env bash
# A kernel test under compute-sanitizer; skipped (75) where that is not installed.
if ! command -v compute-sanitizer >/dev/null; then
  echo "compute-sanitizer is not installed"
  exit 75
fi
compute-sanitizer --tool memcheck --error-exitcode 9 tests/gpu_elementwise_test --gtest_brief=1
