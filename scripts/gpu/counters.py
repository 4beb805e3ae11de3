"""The ten kernels of an ncu report that take longest, over all their launches; in one line last. The report is a table of
`ncu --import REPORT --csv --page raw --print-units base`: a row a launch, a column a metric, units in the first row."""

import collections
import csv
import sys


def launches(file):
    with open(file, encoding="utf-8") as lines:
        table = csv.DictReader(line for line in lines if line.startswith('"'))
        for row in table:
            if row["ID"].isdigit():
                yield row


def number(row, metric):
    return float(row[metric].replace(",", ""))


def main(file):
    kernels = collections.defaultdict(list)
    for row in launches(file):
        time = number(row, "gpu__time_duration.sum") / 1e9  # nanoseconds
        warps = number(row, "sm__warps_active.avg.pct_of_peak_sustained_active")
        kernels[row["Kernel Name"].split("(")[0]].append((time, number(row, "dram__bytes.sum"), warps))
    if not kernels:
        return 1
    rows = []
    for name, all_of_it in kernels.items():
        time = sum(launch[0] for launch in all_of_it)
        rate = sum(launch[1] for launch in all_of_it) / time
        warps = sum(launch[0] * launch[2] for launch in all_of_it) / time
        rows.append((time, name, len(all_of_it), rate, warps))
    rows.sort(reverse=True)
    total = sum(row[0] for row in rows)
    for time, name, count, rate, warps in rows[:10]:
        print(f"{name}: {count} launches, {1e6 * time:.0f} us ({100 * time / total:.0f} %), DRAM {rate / 1e9:.0f} GB/s, warps {warps:.0f} %")
    time, name, _, rate, _ = rows[0]
    count = sum(row[2] for row in rows)
    print(f"{count} launches, {1e3 * total:.2f} ms; longest {name} {100 * time / total:.0f} %, DRAM {rate / 1e9:.0f} GB/s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except (OSError, KeyError, ValueError, ZeroDivisionError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
