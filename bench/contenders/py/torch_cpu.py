"""PyTorch on the CPU: one training step (forward, loss, backward, RMSprop) or inference of timm's model, channels last."""

import timm
import torch

from common import options, serve


def main() -> None:
    opts = options(__doc__)
    torch.manual_seed(0)
    torch.set_num_threads(opts.threads)
    train = opts.mode == "train"
    rate = 0.2 if train else 0.0
    model = timm.create_model(opts.model, drop_rate=rate, drop_path_rate=rate)
    model = model.to(memory_format=torch.channels_last).train(train)
    images = torch.randn(opts.batch_size, 3, opts.image_size, opts.image_size).to(memory_format=torch.channels_last)
    forward = torch.compile(model) if opts.compile else model
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=opts.precision == "bf16-mixed")

    if train:
        labels = torch.randint(0, model.num_classes, (opts.batch_size,))
        optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, alpha=0.9, eps=1e-3, momentum=0.9, foreach=True)
        criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                loss = criterion(forward(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()
    else:

        def step() -> None:
            with torch.inference_mode(), autocast:
                forward(images)

    serve(step, opts.batch_size, {"torch": torch.__version__, "timm": timm.__version__}, opts.warmup)


if __name__ == "__main__":
    main()
