"""What drawing would score with perfect codes: held-out pictures of a run, encoded, decoded, and read by their source's judge.

python benchmarks/tokenizer_ceiling.py runs/fsq-tiny --count 400

Works on runs of a tokenizer alone and of whole models; the PSNR is that of the mean squared error over all pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from mmkit.checkpoint import open_run
from mmkit.compose import load
from mmkit.evaluate.rate import Rate


def main() -> None:
    """Prints the rate of each figure, and the PSNR."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokenizer", default="pixels", help="its name in the recipe")
    parser.add_argument("--count", type=int, default=400)
    args = parser.parse_args()
    checkpoint = open_run(args.run)
    recipe = load(checkpoint.path / "recipe.yaml")
    if args.tokenizer not in recipe.model.tokenizers:
        parser.error(f"{args.run} has no tokenizer {args.tokenizer!r}; it has {', '.join(recipe.model.tokenizers)}")
    tokenizer = recipe.model.tokenizers[args.tokenizer].build()
    tokenizer.load_state_dict(checkpoint.weights(f"tokenizers.{args.tokenizer}"))
    tokenizer.eval()
    source = recipe.data[0].source.build().held_out()
    drawn = (sample for i in range(len(source)) if (sample := source.sample(i, i)).task == "generate")
    samples = [sample for sample, _ in zip(drawn, range(args.count), strict=False)]
    pictures = [segment.content for sample in samples for segment in sample.segments if segment.role == "target"]
    with torch.no_grad():
        back = tokenizer.decode(tokenizer.encode(pictures))
    error = torch.stack([(a - b).square().mean() for a, b in zip(pictures, back, strict=True)]).mean()
    verdicts = [source.judge(sample, [picture]) for sample, picture in zip(samples, back, strict=True)]
    for name in verdicts[0]:
        print(f"{name:10} {Rate(sum(v[name] for v in verdicts), len(verdicts))}")
    print(f"PSNR {-10 * error.log10():.2f} dB")


if __name__ == "__main__":
    main()
