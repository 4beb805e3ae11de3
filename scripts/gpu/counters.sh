#!/usr/bin/env bash
# Hardware counters of every kernel of one training step; skipped (75) where ncu is not installed. The longest ten are the last lines.
if ! command -v ncu >/dev/null; then
  echo "ncu is not installed"
  exit 75
fi
metrics=gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__throughput.avg.pct_of_peak_sustained_elapsed,sm__warps_active.avg.pct_of_peak_sustained_active
# The clocks are left as they are.
ncu --clock-control none --target-processes all --csv --print-units base --metrics "$metrics" node scripts/gpu/one_step.mjs >"$EFFNET_GPU_CHECK_LOGS/counters.csv" || { tail -n 3 "$EFFNET_GPU_CHECK_LOGS/counters.csv"; exit 1; }
python3 - <<'PY'
import csv, os
lines = [line for line in open(os.environ["EFFNET_GPU_CHECK_LOGS"] + "/counters.csv") if line.startswith('"')]
kernels = {}
for row in csv.DictReader(lines):
    kernels.setdefault((row["ID"], row["Kernel Name"]), {})[row["Metric Name"]] = float(row["Metric Value"].replace(",", ""))
rows = []
for (_, name), m in kernels.items():
    time, dram, sm, warps = (next(v for k, v in m.items() if k.startswith(p)) for p in ("gpu__time", "dram__", "sm__throughput", "sm__warps"))
    rows.append((time, name, dram, sm, warps))
rows.sort(reverse=True)
total = sum(r[0] for r in rows)
for time, name, dram, sm, warps in rows[:10]:
    print(f"{name}: {time / 1000:.0f} us, DRAM {dram:.0f} %, SM {sm:.0f} %, warps {warps:.0f} %")
print(f"{len(rows)} kernels, {total / 1e6:.2f} ms; longest {rows[0][1]} {100 * rows[0][0] / total:.0f} %, DRAM {rows[0][2]:.0f} %")
PY
