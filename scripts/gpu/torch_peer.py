"""PyTorch on the cases of bench.mjs: images a second by the wall clock over all timed steps, median and 95th percentile of a step by
CUDA events around each, inputs already on the GPU.

  torch_peer.py                            eager: the anchors of a run. A line of JSON a case, then all in one
  torch_peer.py --anchor                   the first of them alone
  torch_peer.py --table [--from N]         every mode of every case, those of bf16 in fp16 too, the most important case first, behind the
                                           first anchor: a process a case, a line a mode as it is measured, until EFFNET_STAGE_END
                                           (seconds since 1970). Lines are kept in peers/ of EFFNET_GPU_CHECK_LOGS, a file a case, GPU and driver,
                                           and what an earlier call has measured is not measured again; what failed there is tried again,
                                           last. N: the case to begin with. Exit code 76: modes are left

Training is forward, backward, fused SGD with momentum and weight decay, and an average of the weights; 16 bit by autocast, fp16 with a
loss scale whose optimizer step does not wait for the GPU. Inference has its weights in 16 bit and, compiled, frozen (batch norm
folded). Batch 1 is waited for at each call: its time is a latency, by the wall clock. How many steps: protocol.json.
EFFNET_REHEARSE=1: two small images and, without a GPU, the CPU.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time

REHEARSING = os.environ.get("EFFNET_REHEARSE") == "1"
PROTOCOL = json.loads(pathlib.Path(__file__).with_name("protocol.json").read_text())
END = float(os.environ.get("EFFNET_STAGE_END", "inf"))
LOGS = os.environ.get("EFFNET_GPU_CHECK_LOGS")
LONGEST_ANCHOR_S = 12
LONGEST_START_S = 1 if REHEARSING else 30
OUT_OF_MEMORY = "OutOfMemoryError:"
MODES = PROTOCOL["torch_modes"]


def present_call():
    """As call.mjs has it."""
    file = pathlib.Path(LOGS or "", "call.json")
    return json.loads(file.read_text()) if LOGS and file.exists() else None


def cases():
    every = json.loads(pathlib.Path(__file__).with_name("cases.json").read_text())
    return [{**case, "batch": min(case["batch"], 2), "size": 32} for case in every] if REHEARSING else every


def cases_of_table():
    """Those of bench.mjs, then what only PyTorch is asked: a case in bf16 may be faster for it in fp16."""
    every = cases()
    halves = [{**case, "precision": "fp16-mixed"} for case in every if case["precision"] == "bf16-mixed"]
    return every + [case for case in halves if case not in every]


def step_of(case, mode, device):
    import timm
    import torch

    dtype = {"bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}.get(case["precision"], torch.float32)
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
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    weights = [parameter.detach() for parameter in model.parameters()]
    average = [weight.clone() for weight in weights]

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = criterion(run(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        torch._foreach_lerp_(average, weights, 1e-3)

    return step


def event():
    import torch

    return torch.cuda.Event(enable_timing=True)


def timed(step, wait, count, by_events, alone):
    """Seconds of `count` steps by the wall clock, and milliseconds of each. `alone`: each is waited for."""
    begin, last, each, marks = time.perf_counter(), time.perf_counter(), [], []
    for _ in range(count):
        before = event() if by_events else None
        if by_events:
            before.record()
        step()
        if by_events:
            after = event()
            after.record()
            marks.append((before, after))
        else:
            if alone:
                wait()
            now = time.perf_counter()
            each.append(1e3 * (now - last))
            last = now
    wait()
    seconds = time.perf_counter() - begin
    return seconds, sorted(a.elapsed_time(b) for a, b in marks) if by_events else sorted(each)


def measure(case, mode, window):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not REHEARSING:
        raise RuntimeError("PyTorch finds no GPU")
    torch.backends.cudnn.benchmark = True
    tf32 = case["precision"] == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch._dynamo.reset()
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    step = step_of(case, mode, device)
    alone = case["mode"] == "infer" and case["batch"] == 1
    # The first steps compile, measure and record, however long that takes.
    first = 3
    seconds = timed(step, wait, first, False, True)[0]
    each = timed(step, wait, 2, False, True)[0] / 2
    rest = 0 if REHEARSING else max(0, min(PROTOCOL["warmup"] - first - 2, int(PROTOCOL["warmup_s"] / each)))
    if rest:
        each = timed(step, wait, rest, False, alone)[0] / rest
    count = 2 if REHEARSING else max(PROTOCOL["least_steps"], min(PROTOCOL["steps"], int(window / each)))
    by_events = device == "cuda" and not alone
    wall, times = timed(step, wait, count, by_events, alone)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    versions = {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "gpu": name}
    return {
        **case,
        "compile": mode,
        **versions,
        "images_per_s": case["batch"] * count / wall,
        "median_ms": statistics.median(times),
        "p95_ms": times[max(0, -(-95 * count // 100) - 1)],
        "clock": "median and p95 by CUDA events" if by_events else "wall",
        "steps": count,
        "warmup_steps": first + 2 + rest,
        "first_steps_s": seconds,
    }


def row(case, mode, window):
    case = {**case, "call": present_call()}
    try:
        return measure(case, mode, window)
    except Exception as error:  # the other modes have to be measured
        return {**case, "compile": mode, "error": f"{type(error).__name__}: {str(error)[-300:]}"}


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def add_row(file, made):
    line = json.dumps(made)
    with open(file, "a", encoding="utf-8") as lines:
        lines.write(line + "\n")
    print(line, flush=True)


def add_rows(file, case, modes, window):
    """A line a mode, in the file and said, as it is measured. The process ends with the first error but one of memory: after a fault of the
    GPU every later mode would fail in it, too."""
    for mode in modes:
        made = row(case, mode, window)
        add_row(file, made)
        if not made.get("error", OUT_OF_MEMORY).startswith(OUT_OF_MEMORY):
            os._exit(0)  # destructors may not survive a fault


def run_in_time(command):
    """Runs it until the stage's end; what it has started and left, as a compiler's workers, ends with it. None where it had no end in time,
    else its exit code."""
    child = subprocess.Popen(command, start_new_session=True)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=max(0, END - time.time()) if END < float("inf") else None)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def table(first):
    """A case's modes share a process and what it compiles, as long as all is well; one that hangs costs its own case only, one that ends its
    process itself only."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception: a child in a session of its own is ended
    folder = pathlib.Path(LOGS or ".", "peers")
    folder.mkdir(exist_ok=True)
    here = present_call()
    # Of another machine nothing may be compared, and what was measured there is kept.
    machine = re.sub("[^a-z0-9.]+", "-", f"{here['gpu']} {here['driver']}".lower()).strip("-") if here else "unknown"
    every = cases_of_table()
    files = [folder / f"{number:02}-{machine}.jsonl" for number in range(len(every))]
    numbers = range(first, len(every))

    def latest(number):
        """By mode, the last row of it: one with a figure stays."""
        return {there["compile"]: there for there in sorted(rows_of(files[number]), key=lambda there: "error" not in there)}

    def missing(number, again=True):
        """Modes without a figure that have not failed in this call; `again`: those that failed in another, too."""
        had = latest(number)
        now = {mode for mode, there in had.items() if there["call"] == here or "error" not in there}
        return [mode for mode in MODES if mode not in (now if again else had)]

    def in_time():
        return END - time.time() > LONGEST_START_S

    # By it a call's rows are those of a machine that is as fast as another call's.
    anchor = folder / f"anchor-{here['date'] if here else 'none'}.jsonl".replace(":", "")
    if any(missing(number) for number in numbers) and not rows_of(anchor) and in_time():
        run_in_time([sys.executable, __file__, "--case", "0", "--modes", "eager", "--into", str(anchor)])
    for again in (False, True):
        for number in numbers:
            while (modes := missing(number, again)) and in_time():
                command = [sys.executable, __file__, "--case", str(number), "--modes", ",".join(modes), "--into", str(files[number])]
                code = run_in_time(command)
                if code and (left := [mode for mode in modes if mode in missing(number)]):
                    ended = f"its process ended with {code}" if code > 0 else f"its process was ended by signal {-code}"
                    add_row(files[number], {**every[number], "call": here, "compile": left[0], "error": ended})
    rows = [there for number in numbers for there in latest(number).values() if there["compile"] not in missing(number)]
    left = sum(len(missing(number)) for number in numbers)
    failed = sum("error" in there for there in rows)
    print(f"{len(rows)} of {len(rows) + left} modes of {len(numbers)} cases, {failed} failed" + ("; a later call goes on" if left else ""))
    return 1 if failed else 76 if left else 0


def window_of(cases):
    """Seconds of the timed steps, as in bench.mjs; `cases`: that are yet to come."""
    share = (END - time.time()) / cases
    return max(PROTOCOL["window_s"], min(PROTOCOL["longest_window_s"], 0.8 * (share - PROTOCOL["case_s"])))


def anchors(wanted):
    # The stage ends with what has been measured: a case that may have no time left is not begun.
    summary, failed, rest = [], 0, 0
    for number, case in enumerate(wanted):
        if END - time.time() < LONGEST_ANCHOR_S:
            rest += 1
            continue
        # One alone is in front of other work.
        made = row(case, "eager", window_of(len(wanted) - number) if len(wanted) > 1 else PROTOCOL["window_s"])
        print(json.dumps(made), flush=True)
        failed += "error" in made
        summary.append(f"{made['mode']} {made['batch']} {made['precision']} {made.get('images_per_s', 0):.0f}/s")
    print(", ".join(summary) + (f"; no time for {rest} of {len(wanted)} cases" if rest else ""))
    return 1 if failed else 76 if rest else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--anchor", action="store_true")
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--case", type=int)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--into")
    given = parser.parse_args()
    if given.table:
        return table(given.first)
    if given.case is not None:
        add_rows(given.into, cases_of_table()[given.case], given.modes.split(","), PROTOCOL["table_window_s"])
        return 0
    return anchors(cases()[:1] if given.anchor else cases())


if __name__ == "__main__":
    sys.exit(main())
