"""What a run of the `cifar10` recipe, or one like it, draws and says, judged by a classifier that was trained elsewhere.

python benchmarks/cifar_judge.py runs/cifar10 --data ../shared/data --picture docs/pictures/cifar10.png

Draws every class, and asks the published ResNet-56 for CIFAR-10 (github.com/akamaster/pytorch_resnet_cifar10) what it sees;
the Fréchet distance (Heusel et al. 2017) is between its 64 features of the drawings and of as many training photographs. The
same figures of the real test photographs stand beside them, which shows that the judge is read rightly. Then the run
captions those photographs, which it never saw.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

import mmkit
from mmkit.contracts.options import Sampling
from mmkit.evaluate.metrics.frechet import frechet_distance
from mmkit.evaluate.rate import Rate

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Block(nn.Module):
    """Two 3 x 3 convolutions; where the width doubles, the shortcut drops every second pixel and pads with zeros."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.stride, self.pad = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad)))


class Judge(nn.Module):
    """ResNet-56 of He et al. 2016 for CIFAR-10, by the names of the published checkpoint."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(_Block(before, after), *(_Block(after, after) for _ in range(8)))
            for before, after in ((16, 16), (16, 32), (32, 64))
        )
        self.linear = nn.Linear(64, 10)
        kept = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
        self.load_state_dict({name.removeprefix("module."): value for name, value in kept.items()})
        self.eval()

    @torch.no_grad()
    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[B, 64]`` and classes ``[B]`` of images in [0, 1]."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
        x = F.relu(self.bn1(self.conv1((images_B3HW - mean) / std)))
        features = self.layer3(self.layer2(self.layer1(x))).mean((2, 3))
        return features, self.linear(features).argmax(1)


def photographs(archive: Path, per_class: int) -> tuple[Tensor, list[int]]:
    """The first photographs of every class ``[N, 3, 32, 32]`` in [0, 1], and their classes."""
    images, labels = [], []
    with zipfile.ZipFile(archive) as file:
        for label, name in enumerate(CLASSES):
            for entry in sorted(n for n in file.namelist() if f"/{name}/" in n and n.endswith(".jpg"))[:per_class]:
                pixels = np.asarray(Image.open(io.BytesIO(file.read(entry))).convert("RGB"))
                images.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255)
                labels.append(label)
    return torch.stack(images), labels


def drawings(model: mmkit.UnifiedModel, per_class: int, scale: float | None) -> Tensor:
    """As many drawings of every class, class after class."""
    prompts = [[f"a photo of a {name}", mmkit.Image()] for name in CLASSES for _ in range(per_class)]
    drawn: list[Tensor] = []
    for start in range(0, len(prompts), 50):
        stop = min(start + 50, len(prompts))
        sampling = Sampling(guidance_scale=scale)
        drawn += [r[0] for r in model.generate_batch(prompts[start:stop], sampling, seeds=range(start, stop))]
        print(f"drew {stop} of {len(prompts)}", flush=True)
    return torch.stack(drawn).clamp(0, 1)


def captions(model: mmkit.UnifiedModel, images: Sequence[Tensor]) -> list[str]:
    """What the model says, greedily, about each image."""
    said: list[str] = []
    for start in range(0, len(images), 50):
        prompts = [[image, mmkit.Text(max_tokens=16)] for image in images[start : start + 50]]
        said += [r[0] for r in model.generate_batch(prompts, Sampling(temperature=0.0))]
    return said


def sheet(images: Tensor, seen: Sequence[int], per_class: int, columns: int = 10) -> Image.Image:
    """One row a class, the first drawings of it, framed by whether the judge sees that class."""
    size, pad, left = 96, 4, 100
    picture = Image.new("RGB", (left + columns * (size + pad), 10 * (size + pad)), "white")
    draw = ImageDraw.Draw(picture)
    for label, name in enumerate(CLASSES):
        draw.text((6, label * (size + pad) + size // 2), name, fill="black", font_size=16)
        for column in range(min(columns, per_class)):
            index = label * per_class + column
            pixels = (images[index] * 255).round().byte().permute(1, 2, 0).numpy()
            x, y = left + column * (size + pad), label * (size + pad)
            picture.paste(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC), (x, y))
            draw.rectangle(
                (x, y, x + size, y + size), outline="#2a9d55" if seen[index] == label else "#c8402e", width=2
            )
    return picture


def main() -> None:
    """Prints the figures and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument(
        "--captions", type=int, default=50, help="photographs of each class that are captioned; 0 for none"
    )
    parser.add_argument("--scale", type=float, help="guidance; the recipe's where not given")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    if not (args.data / "cifar_resnet").is_dir() or not (args.data / "cifar10_jpeg").is_dir():
        parser.error(f"--data {args.data} does not hold the folders cifar_resnet and cifar10_jpeg")
    if args.per_class < 10:
        parser.error(f"--per-class {args.per_class} is too few for a distance of 64 features: give 10 or more")
    judge = Judge(args.data / "cifar_resnet" / "resnet56-4bfd9763.th")
    model = mmkit.load(args.run)
    train, _ = photographs(args.data / "cifar10_jpeg" / "train_2000_per_class.zip", 200)
    test, labels = photographs(args.data / "cifar10_jpeg" / "test_200_per_class.zip", 200)
    known, _ = judge(train)
    features, seen = judge(test)
    right = sum(int(a) == b for a, b in zip(seen, labels, strict=True))
    print(
        f"real photographs: judged right {Rate(right, len(labels))}, distance {frechet_distance(features, known):.2f}"
    )
    drawn = drawings(model, args.per_class, args.scale)
    features, seen = judge(drawn)
    asked = [label for label in range(10) for _ in range(args.per_class)]
    right = sum(int(a) == b for a, b in zip(seen, asked, strict=True))
    print(f"drawings: judged right {Rate(right, len(asked))}, distance {frechet_distance(features, known):.2f}")
    for label, name in enumerate(CLASSES):
        print(f"  {name:10} {sum(int(a) == b == label for a, b in zip(seen, asked, strict=True))} of {args.per_class}")
    if args.picture:
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        sheet(drawn, seen.tolist(), args.per_class).save(args.picture, optimize=True)
    if not args.captions:
        return
    test, labels = photographs(args.data / "cifar10_jpeg" / "test_200_per_class.zip", args.captions)
    said = captions(model, list(test))
    right = sum(a == f"a photo of a {CLASSES[b]}" for a, b in zip(said, labels, strict=True))
    print(f"captions of unseen photographs: right {Rate(right, len(labels))}")


if __name__ == "__main__":
    main()
