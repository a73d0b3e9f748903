"""A training step that reads what its tokenizer gave from a store, against one that asks the tokenizer, in turn.

    python benchmarks/shared_codes.py --recipe chameleon-tiny --rounds 9 --threads 1 --clock cpu [KEY=VALUE ...]

Every round does one step three times, beginning with another one each time: without a store, with one that has not seen it
(and keeps it), and with one that has, as a second arm would. Before that it is done once untimed, since the first pass over
a new length prepares more than the rest. Ratios are taken within a round. `--clock cpu` counts the process's own seconds,
for machines that are busy. Weights are random, which changes no time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mmkit.compose import load
from mmkit.data.mixture import Mixture
from mmkit.model import UnifiedModel
from mmkit.objectives import Joint
from mmkit.store import Store
from mmkit.train import fit_tokenizers

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CASES = ("without", "first", "again")


class Steps:
    """Forward and backward passes of a recipe, with or without a store."""

    def __init__(self, recipe_name: str, overrides: list[str], clock: Callable[[], float]) -> None:
        recipe = load(recipe_name, overrides)
        self.clock, self.count = clock, recipe.train.batch_samples
        self.mixture = Mixture([(m.source.build(), m.weight) for m in recipe.data], recipe.train.seed)
        self.model = UnifiedModel(recipe)
        fit_tokenizers(self.model.tokenizers, self.mixture)
        self.model.sizes = self.mixture.sizes()
        self.model.train()
        self.objective = Joint(self.model)
        self.encoding = 0.0
        inner = self.model._tokenize

        def timed(*given):
            start = self.clock()
            tokens = inner(*given)
            self.encoding += self.clock() - start
            return tokens

        self.model._tokenize = timed

    def seconds(self, step: int, store: Store | None) -> tuple[float, float]:
        """How long one step takes, and what stands for `encode` in it."""
        self.model.store, self.encoding = store, 0.0
        samples = self.mixture.draw(step, self.count)
        start = self.clock()
        for share in self.objective.shares(self.objective.prepare(samples, step), step):
            share.loss.backward()
        whole = self.clock() - start
        self.model.zero_grad(set_to_none=True)
        return whole, self.encoding


def main() -> None:
    """Prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="chameleon-tiny")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    steps = Steps(chosen.recipe, chosen.overrides, CLOCKS[chosen.clock])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        stores = {"without": None, "first": Store(Path(folder) / "first"), "again": Store(Path(folder) / "again")}
        for number in range(chosen.rounds + 1):
            steps.seconds(number, stores["again"])
            turn = number % len(CASES)
            for name in CASES[turn:] + CASES[:turn]:
                measured = steps.seconds(number, stores[name])
                if number:
                    times[name].append(measured)
        size = sum(path.stat().st_size for path in Path(folder).glob("first/*.sqlite")) / (chosen.rounds + 1)
    print(f"{chosen.recipe} {' '.join(chosen.overrides)}, {chosen.threads} threads, {chosen.clock} time, "
          f"torch {torch.__version__}, {size / 1024:.1f} KiB a step")  # fmt: skip
    for name in CASES:
        whole, part = (statistics.median(column) for column in zip(*times[name], strict=True))
        ratios = [one / other for (one, _), (other, _) in zip(times[name], times["without"], strict=True)]
        print(f"{name:8} step {1e3 * whole:7.1f} ms, codes and latents {1e3 * part:6.1f} ms, "
              f"step / without {statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
