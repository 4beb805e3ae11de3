"""torchvision + Pillow: decode, random resized crop, flip, normalise; DataLoader with a worker process a thread.

--normalize sample: ToTensor and Normalize in the workers, as in torchvision's examples. batch: workers hand over uint8 and
the main process normalises whole batches.
"""

import os

import PIL
import torch
import torchvision
from PIL import Image
from torchvision import transforms

from common import options, serve

PREFETCH = 2  # batches a worker, PyTorch's default
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Photos(torch.utils.data.Dataset):
    def __init__(self, folder: str, transform) -> None:
        self.files = sorted(
            os.path.join(at, name) for at, _, names in os.walk(folder) for name in names if name.lower().endswith((".jpg", ".jpeg"))
        )
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


class Endless(torch.utils.data.Sampler):
    """Epoch after epoch, so that the workers never run dry."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self):
        while True:
            yield from torch.randperm(self.count).tolist()


def main() -> None:
    opts = options(__doc__)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    per_sample = opts.normalize == "sample"
    crop = transforms.RandomResizedCrop(opts.image_size, interpolation=transforms.InterpolationMode.BICUBIC)
    end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)] if per_sample else [transforms.PILToTensor()]
    dataset = Photos(opts.data, transforms.Compose([crop, transforms.RandomHorizontalFlip(), *end]))
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=opts.batch_size, sampler=Endless(len(dataset)), num_workers=opts.threads, prefetch_factor=PREFETCH
    )
    batches = iter(loader)
    shift = torch.tensor(MEAN).mul(255).view(1, 3, 1, 1)
    scale = torch.tensor(STD).mul(255).reciprocal().view(1, 3, 1, 1)

    def step() -> None:
        batch = next(batches)
        if not per_sample:
            batch.float().sub_(shift).mul_(scale)

    versions = {"torchvision": torchvision.__version__, "pillow": PIL.__version__}
    serve(step, opts.batch_size, versions, opts.warmup, prime=PREFETCH * opts.threads + 1)


if __name__ == "__main__":
    main()
