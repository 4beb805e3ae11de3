"""PyTorch eager on the cases of bench.mjs: images a second, wall clock, inputs already on the GPU. One line each, then all in one."""

import json
import pathlib
import time

import timm
import torch

WINDOW_S = 3.0
DTYPES = {"bf16-mixed": torch.bfloat16, "fp32": torch.float32}


def step_of(case):
    train = case["mode"] == "train"
    rate = 0.2 if train else 0.0
    model = timm.create_model(case["model"], drop_rate=rate, drop_path_rate=rate).cuda()
    model = model.to(memory_format=torch.channels_last).train(train)
    images = torch.randn(case["batch"], 3, case["size"], case["size"], device="cuda").to(memory_format=torch.channels_last)
    dtype = DTYPES[case["precision"]]
    autocast = torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32)
    if not train:

        def infer():
            with torch.inference_mode(), autocast:
                model(images)
            torch.cuda.synchronize()

        return infer
    labels = torch.randint(0, model.num_classes, (case["batch"],), device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-5, fused=True)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    weights = [p.detach() for p in model.parameters()]
    ema = [w.clone() for w in weights]

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(ema, weights, 1e-3)
        loss.item()

    return step


def main() -> None:
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    summary = []
    for case in json.loads(pathlib.Path(__file__).with_name("cases.json").read_text()):
        step = step_of(case)
        for _ in range(10):
            step()
        torch.cuda.synchronize()
        begin, steps = time.perf_counter(), 0
        while time.perf_counter() - begin < WINDOW_S:
            step()
            steps += 1
        torch.cuda.synchronize()
        rate = case["batch"] * steps / (time.perf_counter() - begin)
        print(json.dumps({**case, "torch": torch.__version__, "images_per_s": rate}))
        summary.append(f"{case['mode']} {case['batch']} {case['precision']} {rate:.0f}/s")
    print(", ".join(summary))


if __name__ == "__main__":
    main()
