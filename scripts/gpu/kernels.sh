#!/usr/bin/env bash
# Every kernel test on the GPU, one for each core since their references are made by the host; the failed ones by name in the last line.
# With "libraries" those of convolutions and linear layers alone, by NVIDIA's libraries wherever they can; skipped (75) without them.
limit=80
export EFFNET_REAL_SIZES=1
[ "${EFFNET_REHEARSE:-0}" = 1 ] && limit=3600 EFFNET_REAL_SIZES=0
left=$((EFFNET_STAGE_END - $(date +%s)))
[ "$limit" -gt "$left" ] && limit=$left
at=$EFFNET_GPU_CHECK_LOGS/kernels${1:-}
rm -rf "$at"
mkdir "$at"
one() {
  case "${4:-}$1" in
    libraries*conv*) export EFFNET_CUDA_PROVIDER=cudnn ;;
    libraries*) export EFFNET_CUDA_PROVIDER=cublaslt ;;
    *) export EFFNET_CUDA_PROVIDER=own ;; # the table would give cuDNN some
  esac
  timeout -k 5 "$2" "$1" --gtest_brief=1 >"$3/$(basename "$1").log" 2>&1 || basename "$1" >>"$3/failed"
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
printf '%s\n' "${tests[@]}" | xargs -P "$(nproc)" -I{} bash -c 'one "$@"' _ {} "$limit" "$at" "${1:-}"
cat "$at"/*.log
touch "$at/failed"
echo "$(ls "$at"/*.log | wc -l) programs, $(wc -l <"$at/failed") failed $(paste -sd ' ' "$at/failed")${missing:+; not there: ${missing[*]}}"
[ ! -s "$at/failed" ]
