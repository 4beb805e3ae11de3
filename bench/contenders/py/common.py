"""What the Python contenders share: options and the line protocol of bench/lib/contender.mjs."""

import argparse
import json
import sys
import time


def options(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--mode", choices=("train", "infer"), default="infer")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--precision", choices=("fp32", "bf16-mixed"), default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="PyTorch: torch.compile")
    parser.add_argument("--normalize", choices=("sample", "batch"), default="sample", help="input pipeline: where")
    parser.add_argument("--data", default=".", help="folder of JPEGs")
    parser.add_argument("--cache", default=".", help="folder for exported models")
    return parser.parse_args()


def peak_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def say(message: dict) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def serve(step, images: int, versions: dict, warmup: int, prime: int = 0) -> None:
    """Warms up, says ready, then times as many steps of `images` images as each line of stdin asks for.

    Each time after `prime` untimed ones: they take what was prefetched while others had their turn.
    """
    for _ in range(warmup):
        step()
    say({"ready": versions})
    for line in sys.stdin:
        steps = int(line)
        for _ in range(prime):
            step()
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        seconds = time.perf_counter() - begin
        say({"images": images * steps, "seconds": seconds, "peak_bytes": peak_bytes()})
