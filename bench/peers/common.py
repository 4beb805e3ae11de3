"""What the peer scripts share: options, timing, the JSON line."""

import argparse
import json
import statistics
import time


def options(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--mode", choices=("train", "infer"), default="infer")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--precision", choices=("fp32", "bf16-mixed"), default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="PyTorch: torch.compile")
    parser.add_argument("--cache", default=".", help="folder for exported models")
    return parser.parse_args()


def measure(step, opts: argparse.Namespace, versions: dict) -> None:
    """Times opts.steps calls of step() after opts.warmup untimed ones; prints one JSON line."""
    for _ in range(opts.warmup):
        step()
    times = []
    for _ in range(opts.steps):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    mean = statistics.mean(times)
    print(json.dumps({
        "images_per_s": opts.batch_size / mean,
        "latency_ms": {"mean": mean * 1e3, "p50": statistics.median(times) * 1e3, "min": min(times) * 1e3, "max": max(times) * 1e3},
        "versions": versions,
    }))
