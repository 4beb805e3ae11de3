#!/usr/bin/env bash
# Hardware counters of every kernel of one training step of the first case, at its batch; the longest ten are the last lines. Skipped
# (75) where ncu is not installed or may not read counters. Its clocks and caches are left as they are, and few counters are read:
# all at once, so that a kernel runs once and nothing is saved for it to run again.
if ! command -v ncu >/dev/null; then
  echo "ncu is not installed"
  exit 75
fi
at=$EFFNET_GPU_CHECK_LOGS/counters
rm -rf "$at"
mkdir "$at"
read=(ncu --clock-control none --cache-control none --metrics "gpu__time_duration.sum,dram__bytes.sum,sm__warps_active.avg.pct_of_peak_sustained_active")

# Sandboxes and drivers that keep counters to root say so here, before the step's time is spent.
timeout -k 1 20 "${read[@]}" --launch-count 1 --csv tests/gpu_instructions_test --gtest_brief=1 --gtest_filter=Instructions.OfDoubles >"$at/probe.log" 2>&1
if ! grep -q '^".*check_doubles' "$at/probe.log"; then
  cat "$at/probe.log"
  echo "ncu reads no counters of this GPU: $(grep -m 1 '==ERROR==\|==WARNING==' "$at/probe.log" | cut -c1-200)"
  exit 75
fi

# The report is a file that holds what was read also where ncu is interrupted; tables are made of it in a call of its own.
left=$((EFFNET_STAGE_END - $(date +%s) - 8))
timeout -s INT -k 4 "$left" "${read[@]}" --target-processes all --force-overwrite --export "$at/step" --launch-count 1500 node scripts/gpu/one_step.mjs >"$at/step.log" 2>&1
code=$?
[ -f "$at/step.ncu-rep" ] && timeout -k 1 10 ncu --import "$at/step.ncu-rep" --csv --page raw --print-units base >"$at/step.csv" 2>>"$at/step.log"
rm -f "$at/step.ncu-rep"
if ! python3 scripts/gpu/counters.py "$at/step.csv"; then
  tail -n 3 "$at/step.log"
  echo "no counters: ncu ended with $code"
  exit 1
fi
