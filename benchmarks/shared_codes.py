"""A training step that reads what its tokenizer gave from a store, against one that asks the tokenizer, in turn.

    python benchmarks/shared_codes.py --recipe chameleon-tiny --rounds 15 --threads 1 [KEY=VALUE ...]

Every round does one step three times: without a store, with an empty one (which keeps what is given), and with a full one,
as a second arm would. Ratios are taken within a round. Weights are random, which
changes no time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from mmkit.compose import load
from mmkit.data.mixture import Mixture
from mmkit.model import UnifiedModel
from mmkit.objectives import Joint
from mmkit.store import Store
from mmkit.train import fit_tokenizers


class Steps:
    """Forward and backward passes of a recipe, with or without a store."""

    def __init__(self, recipe_name: str, overrides: list[str], folder: Path) -> None:
        recipe = load(recipe_name, overrides)
        self.folder, self.count = folder, recipe.train.batch_samples
        self.mixture = Mixture([(m.source.build(), m.weight) for m in recipe.data], recipe.train.seed)
        self.model = UnifiedModel(recipe)
        fit_tokenizers(self.model.tokenizers, self.mixture)
        self.model.sizes = self.mixture.sizes()
        self.model.train()
        self.objective = Joint(self.model)
        self.encoding = 0.0
        inner = self.model._tokenize

        def timed(*given):
            start = time.perf_counter()
            tokens = inner(*given)
            self.encoding += time.perf_counter() - start
            return tokens

        self.model._tokenize = timed

    def seconds(self, step: int, store: Store | None) -> tuple[float, float]:
        """The wall time of one step, and of what stands for `encode` in it."""
        self.model.store, self.encoding = store, 0.0
        samples = self.mixture.draw(step, self.count)
        start = time.perf_counter()
        for share in self.objective.shares(self.objective.prepare(samples, step), step):
            share.loss.backward()
        whole = time.perf_counter() - start
        self.model.zero_grad(set_to_none=True)
        return whole, self.encoding


def main() -> None:
    """Prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="chameleon-tiny")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        steps, store = Steps(chosen.recipe, chosen.overrides, Path(folder)), Store(Path(folder))
        steps.seconds(0, None), steps.seconds(0, store)
        rounds = [[steps.seconds(n, kept) for kept in (None, store, store)] for n in range(1, chosen.rounds + 1)]
        size = sum(path.stat().st_size for path in Path(folder).glob("*.sqlite"))
    print(f"{chosen.recipe} {' '.join(chosen.overrides)}, {chosen.threads} threads, torch {torch.__version__}, "
          f"{size / (chosen.rounds + 1) / 1024:.1f} KiB a step")  # fmt: skip
    for place, name in enumerate(("without", "empty", "full")):
        whole, part = (statistics.median(each[place][i] for each in rounds) for i in (0, 1))
        ratios = [each[place][0] / each[0][0] for each in rounds]
        share = statistics.median(each[place][1] / each[place][0] for each in rounds)
        print(f"{name:8} step {1e3 * whole:7.1f} ms, codes and latents {1e3 * part:6.1f} ms ({100 * share:4.1f} %), "
              f"step / without {statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
