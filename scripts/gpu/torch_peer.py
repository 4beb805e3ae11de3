"""PyTorch on the cases of bench.mjs: images a second by the wall clock, inputs already on the GPU.

  torch_peer.py                            eager: the anchor of a run. A line of JSON a case, then all in one
  torch_peer.py --table [--from N] [--seconds S]
                                           every mode of every case, the most important case first: a process a case, a line a
                                           mode as it is measured, until the time is over. N: the case to begin with, from 0

Training is forward, backward, fused SGD with momentum and weight decay, and an average of the weights; 16 bit by autocast. Inference
has its weights in 16 bit and, compiled, frozen (batch norm folded). Batch 1 is waited for at each call: its time is a latency.
EFFNET_REHEARSE=1: two small images and, without a GPU, the CPU.
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

REHEARSING = os.environ.get("EFFNET_REHEARSE") == "1"
WINDOW_S = 0.01 if REHEARSING else 3.0
MODES = ("eager", "default", "reduce-overhead", "max-autotune")


def cases():
    every = json.loads(pathlib.Path(__file__).with_name("cases.json").read_text())
    return [{**case, "batch": min(case["batch"], 2), "size": 32} for case in every] if REHEARSING else every


def step_of(case, mode, device):
    import timm
    import torch

    dtype = {"bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16, "fp32": torch.float32}[case["precision"]]
    train = case["mode"] == "train"
    rates = {"drop_rate": 0.2, "drop_path_rate": 0.2} if train else {}
    model = timm.create_model(case["model"], **rates).to(device).to(memory_format=torch.channels_last).train(train)
    images = torch.randn(case["batch"], 3, case["size"], case["size"], device=device)
    images = images.to(memory_format=torch.channels_last)
    if not train:
        model, images = model.to(dtype), images.to(dtype)
        torch._inductor.config.freezing = mode != "eager"
    run = model if mode == "eager" else torch.compile(model, mode=None if mode == "default" else mode)
    if not train:

        def infer():
            with torch.inference_mode():
                run(images)

        return infer
    autocast = torch.autocast(device, dtype=dtype) if dtype != torch.float32 else contextlib.nullcontext()
    labels = torch.randint(0, model.num_classes, (case["batch"],), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-5, fused=True)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    weights = [parameter.detach() for parameter in model.parameters()]
    average = [weight.clone() for weight in weights]

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = criterion(run(images), labels)
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(average, weights, 1e-3)

    return step


def measure(case, mode):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not REHEARSING:
        raise RuntimeError("PyTorch finds no GPU")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch._dynamo.reset()
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    step = step_of(case, mode, device)
    for _ in range(2 if REHEARSING else 20):
        step()
    wait()
    alone = case["mode"] == "infer" and case["batch"] == 1
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < WINDOW_S:
        # The queue is kept short, so that what is asked for within the window ends soon after it.
        for _ in range(1 if alone else 8):
            step()
            steps += 1
        wait()
    rate = case["batch"] * steps / (time.perf_counter() - begin)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    versions = {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "gpu": name}
    return {**case, "compile": mode, **versions, "images_per_s": rate}


def row(case, mode):
    try:
        return measure(case, mode)
    except Exception as error:  # the other modes have to be measured
        return {**case, "compile": mode, "error": f"{type(error).__name__}: {error}"[-300:]}


def table(first, seconds):
    """A case's processes share what was compiled; one that hangs or is killed costs its own case only."""
    end = time.monotonic() + seconds
    every = cases()
    begun, failed = first, 0
    for begun in range(first, len(every) + 1):
        left = end - time.monotonic()
        if begun == len(every) or left < 30:
            break
        command = [sys.executable, __file__, "--case", str(begun)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            printed = child.communicate(timeout=left)[0]
        except subprocess.TimeoutExpired:
            child.kill()
            printed = child.communicate()[0]
            sys.stdout.write(printed)
            break
        sys.stdout.write(printed)
        sys.stdout.flush()
        failed += printed.count('"error"') + (child.returncode != 0)
    rest = "" if begun >= len(every) else f"; go on with --from {begun}"
    print(f"{begun - first} of {len(every)} cases in every mode, {failed} failed{rest}")
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--case", type=int)
    given = parser.parse_args()
    if given.table:
        return table(given.first, given.seconds)
    if given.case is not None:
        for mode in MODES:
            print(json.dumps(row(cases()[given.case], mode)), flush=True)
        return 0
    summary, failed = [], 0
    for case in cases():
        made = row(case, "eager")
        print(json.dumps(made), flush=True)
        failed += "error" in made
        summary.append(f"{made['mode']} {made['batch']} {made['precision']} {made.get('images_per_s', 0):.0f}/s")
    print(", ".join(summary))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
