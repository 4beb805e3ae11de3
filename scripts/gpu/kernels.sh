#!/usr/bin/env bash
# Every kernel test on the GPU, one for each core since their references are made by the host, until the stage's end; those that failed
# and those that did not come to their end by name in the last line.
# With "libraries" those of convolutions and linear layers alone, by NVIDIA's libraries wherever they can; skipped (75) without them.
export EFFNET_REAL_SIZES=1
[ "${EFFNET_REHEARSE:-0}" = 1 ] && EFFNET_REAL_SIZES=0
at=$EFFNET_GPU_CHECK_LOGS/kernels${1:-}
rm -rf "$at"
mkdir "$at"
one() {
  local left=$((EFFNET_STAGE_END - $(date +%s))) code=124
  case "${3:-}$1" in
    libraries*conv*) export EFFNET_CUDA_PROVIDER=cudnn ;;
    libraries*) export EFFNET_CUDA_PROVIDER=cublaslt ;;
    *) export EFFNET_CUDA_PROVIDER=own ;; # the table would give cuDNN some
  esac
  if [ "$left" -gt 0 ]; then
    timeout -k 1 "$left" "$1" --gtest_brief=1 >"$2/$(basename "$1").log" 2>&1
    code=$?
  fi
  case $code in 0) ;; 124 | 137) basename "$1" >>"$2/cut" ;; *) basename "$1" >>"$2/failed" ;; esac
}
export -f one
tests=()
for each in tests/gpu_*_test; do
  case $each in *_instructions_test | *_shapes_test) ;; *) tests+=("$each") ;; esac # of stages of their own
done
if [ "${1:-}" = libraries ]; then
  # What doctor tells of each: its version where it can be used.
  has() { node -e "import('./dist/binding.js').then(async ({ binding }) => process.exit((await binding().cudaInfo()).libraries.find(({ name }) => name === '$1').version ? 0 : 1))"; }
  tests=()
  missing=()
  if has cuDNN; then tests+=(tests/gpu_conv_test); else missing+=(cuDNN); fi
  if has cuBLASLt; then tests+=(tests/gpu_linear_test); else missing+=(cuBLASLt); fi
  [ ${#missing[@]} -eq 0 ] || echo "not there (smoke.log says why): ${missing[*]}"
  [ ${#tests[@]} -gt 0 ] || exit 75
fi
touch "$at/failed" "$at/cut"
printf '%s\n' "${tests[@]}" | xargs -P "$(nproc)" -I{} bash -c 'one "$@"' _ {} "$at" "${1:-}"
cat "$at"/*.log
failed=$(paste -sd ' ' "$at/failed")
cut=$(paste -sd ' ' "$at/cut")
echo "${#tests[@]} programs, $(wc -l <"$at/failed") failed${failed:+: $failed}${cut:+; not to their end: $cut}${missing:+; not there: ${missing[*]}}"
[ -z "$failed" ] || exit 1
[ -z "$cut" ] || exit 124
