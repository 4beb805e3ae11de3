#!/usr/bin/env bash
# Every kernel test on the GPU, four at once since their references are made by the host; the failed ones by name in the last line.
limit=60
[ "${EFFNET_REHEARSE:-0}" = 1 ] && limit=3600
at=$(mktemp -d)
one() { timeout -k 5 "$2" "$1" --gtest_brief=1 >"$3/$(basename "$1").log" 2>&1 || basename "$1" >>"$3/failed"; }
export -f one
printf '%s\n' tests/gpu_*_test | xargs -P 4 -I{} bash -c 'one "$@"' _ {} "$limit" "$at"
cat "$at"/*.log
touch "$at/failed"
echo "$(ls "$at"/*.log | wc -l) programs, $(wc -l <"$at/failed") failed $(paste -sd ' ' "$at/failed")"
[ ! -s "$at/failed" ]
