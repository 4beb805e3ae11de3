"""PyTorch's input pipeline: ImageFolder, random resized crop, flip, normalisation, worker processes; images/s of one epoch."""

import json
import os
import sys
import time

import PIL
import torch
import torchvision
from torchvision import transforms

from common import options


def main() -> None:
    opts = options(__doc__)
    folder = os.environ["BENCH_DATA"]
    torch.set_num_threads(1)
    transform = transforms.Compose([
        transforms.RandomResizedCrop(opts.image_size, scale=(0.35, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
    ])
    dataset = torchvision.datasets.ImageFolder(folder, transform)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=opts.batch_size, shuffle=True, num_workers=opts.threads, persistent_workers=True, drop_last=True
    )
    rates = []
    for epoch in range(3):  # the first one starts the workers
        images = 0
        begin = time.perf_counter()
        for batch, _ in loader:
            images += batch.shape[0]
        if epoch > 0:
            rates.append(images / (time.perf_counter() - begin))
    print(json.dumps({"images_per_s": max(rates), "versions": {"torchvision": torchvision.__version__, "pillow": PIL.__version__}}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
