"""The free size of each arm, solved so that arms are comparable: nothing is allocated, all is measured on the meta device.

What is matched, always with the base arm:

- ``parameters``: of the whole model, frozen ones and tokenizers included: what one has to store and load.
- ``flops``: of a forward pass, per token of the first sample (`mmkit explain`): backbone and heads.
- ``tokens``: those the whole run trains on: steps x samples of a step x mean tokens of a sample.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mmkit.ablate.grid import Arm, Grid
from mmkit.ablate.reading import Match
from mmkit.compose import check, load
from mmkit.compose.recipe import Recipe
from mmkit.compose.rendering import tree
from mmkit.data.mixture import Mixture
from mmkit.errors import MmkitError, Problem, RecipeError
from mmkit.explain.cost import flops
from mmkit.explain.example import example_of, laid_out, text_tokenizers
from mmkit.model import UnifiedModel

TOLERANCE = 0.02
LARGEST = 1 << 24
"""Of a free size."""
COARSEST = 512
"""Widest gap between two sizes that compose: a width is a multiple of heads x 2, x 4, ..."""
ROUND = 8
SAMPLED = 64
"""Samples over which tokens are averaged."""


@dataclass(frozen=True)
class Solved:
    """What was solved for one arm: the free size before and after, and the amount reached, in units of the base's."""

    path: str
    was: int
    now: int
    ratio: float

    def __str__(self) -> str:
        size = f"{self.path} = {self.now:,}" + (f" (was {self.was:,})" if self.was != self.now else "")
        return f"{size}, {100 * self.ratio:.1f} % of the base"


def meta_model(recipe: Recipe) -> UnifiedModel:
    """The model of a recipe, its weights without storage."""
    with torch.device("meta"):
        return UnifiedModel(recipe).eval()


def parameters(recipe: Recipe) -> float:
    """Parameters of the whole model."""
    return sum(p.numel() for p in meta_model(recipe).parameters())


def flops_per_token(recipe: Recipe) -> float | None:
    """FLOPs of a forward pass per token of the first sample; None where the backbone cannot be measured without data."""
    model = meta_model(recipe)
    return flops(model, example_of(model)).forward_per_token


def tokens(recipe: Recipe) -> float:
    """Tokens of the whole run. A text tokenizer that is yet to be trained counts 4 bytes for a code, in every arm alike."""
    model, known = meta_model(recipe), text_tokenizers(recipe)
    mixture = Mixture([(m.source.build(), m.weight) for m in recipe.data], recipe.train.seed)
    lengths = [len(laid_out(model, sample, known).layout) for sample in mixture.draw(0, SAMPLED)]
    return recipe.train.steps * recipe.train.batch_samples * sum(lengths) / len(lengths)


MEASURES: dict[str, Callable[[Recipe], float | None]] = {
    "parameters": parameters,
    "flops": flops_per_token,
    "tokens": tokens,
}


def match_arms(grid: Grid) -> tuple[Grid, dict[str, Solved]]:
    """The grid with the free size of each arm solved, and what was solved, by arm. The base arm stays as it is.

    An arm within 2 % as it is written keeps its size. Raises `RecipeError` that names, for every arm without a size within
    2 %, the nearest one.
    """
    if grid.match is None:
        return grid, {}
    base, *others = grid.arms
    target = MEASURES[grid.match.what](base.recipe)
    if not target:
        fact = f"the {grid.match.what} of the base cannot be measured without data"
        raise RecipeError([_problem(grid.match, fact, "match something else")])
    searches = [_Search(grid, arm, grid.match, target) for arm in others]
    found = {search.arm.name: search.solve() for search in searches}
    solved = {name: each for name, each in found.items() if isinstance(each, Solved)}
    problems = [each for each in found.values() if isinstance(each, Problem)]
    arms = [base, *(s.resized(solved[s.arm.name].now) for s in searches if s.arm.name in solved)]
    problems += _alike(arms, grid.match)
    if problems:
        raise RecipeError(problems)
    return replace(grid, arms=tuple(arms)), solved


def _alike(arms: Sequence[Arm], match: Match) -> Iterator[Problem]:
    """Arms that differed in nothing but the size that was solved."""
    seen: dict[str, str] = {}
    for arm in arms:
        first = seen.setdefault(arm.recipe.text, arm.name)
        if first != arm.name:
            fact = f"solved, the arms {first!r} and {arm.name!r} are the same recipe"
            yield _problem(match, fact, "free another size than an axis swaps")


def _problem(match: Match, fact: str, remedy: str) -> Problem:
    place = match.place
    return Problem(
        "match.free", fact, remedy, rule="ablation.match", file=place.file, line=place.line, column=place.column
    )


class _Search:
    """The free size of one arm. The amount is taken to grow with the size, which sizes of models do."""

    def __init__(self, grid: Grid, arm: Arm, match: Match, target: float) -> None:
        self.grid, self.arm, self.match, self.target = grid, arm, match, target
        self.ratio = functools.cache(self._ratio)

    def resized(self, size: int) -> Arm:
        """The arm with another free size."""
        if size == self.own():
            return self.arm
        overrides = (*self.arm.overrides, f"{self.match.free}={size}")
        recipe = load(self.grid.base, (*overrides, f"train.seed={self.grid.seeds[0]}"))
        return replace(self.arm, overrides=overrides, recipe=recipe)

    def own(self) -> Any:
        """What the arm's resolved recipe says at the free path; None where that is nothing."""
        value: Any = tree(self.arm.recipe)
        for key in self.match.free.split("."):
            if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                value = value.get(key) if isinstance(value, dict) else None
        return value

    def _ratio(self, size: int) -> float | None:
        """The amount at a size, in units of the base's; None where that size does not compose."""
        try:
            recipe = self.resized(size).recipe
            check(recipe)
            amount = MEASURES[self.match.what](recipe)
        except MmkitError:
            return None
        return None if amount is None else amount / self.target

    def solve(self) -> Solved | Problem:
        own, free = self.own(), self.match.free
        if not isinstance(own, int) or isinstance(own, bool) or own < 1:
            return self._no_size()
        ratio = self.ratio(own)
        if ratio is None:
            fact = f"the {self.match.what} of arm {self.arm.name!r} cannot be measured without data"
            return _problem(self.match, fact, "match something else")
        size = own
        for gap in () if _near(ratio) else self._gaps(own):
            size, ratio = self._nearest(own, gap)
            if _near(ratio):
                break
        if _near(ratio):
            return Solved(free, own, size, ratio)
        fact = (
            f"no {free} gives arm {self.arm.name!r} the {self.match.what} of the base within {100 * TOLERANCE:.0f} %: "
            f"the nearest, {size:,}, has {100 * ratio:.1f} % of them"
        )
        return _problem(self.match, fact, "free a finer size, or match something else")

    def _no_size(self) -> Problem:
        """Why an arm has no free size: it does not know that option, or leaves it to another."""
        try:
            self.resized(ROUND)
        except RecipeError as error:
            for problem in error.problems:
                if problem.rule == "key.unknown":
                    return _problem(self.match, f"in arm {self.arm.name!r}: {problem.fact}", problem.remedy)
        fact = f"arm {self.arm.name!r} has no whole number at {self.match.free!r}"
        return _problem(self.match, fact, f"give it in every arm: `set: [{self.match.free}=...]`")

    def _gaps(self, own: int) -> list[int]:
        """Distances of sizes that compose, the finest last. Multiples of 8 come first: hardware is slow with odd widths."""
        finest = next((gap for gap in range(1, COARSEST) if self._composes(own + gap)), COARSEST)
        return [finest] if own % ROUND else [math.lcm(finest, ROUND), finest]

    def _composes(self, size: int) -> bool:
        try:
            check(self.resized(size).recipe)
        except MmkitError:
            return False
        return True

    def _nearest(self, own: int, gap: int) -> tuple[int, float]:
        """By doubling and halving over ``own + k * gap``: the size whose ratio is nearest to 1."""
        tried = {own: self.ratio(own) or 0.0}
        first = own % gap or gap
        low = high = own
        while tried[high] < 1 and high < LARGEST and (further := self._measured(2 * high - first + gap, gap, tried)):
            if tried[further] == tried[high]:
                break  # this size has nothing to do with what is matched
            low, high = high, further
        if tried[low] > 1:
            low = self._measured(first, gap, tried) or own
        while high - low > gap:
            middle = self._measured(low + (high - low) // gap // 2 * gap, gap, tried)
            if middle is None or not low < middle < high:
                break
            low, high = (middle, high) if tried[middle] < 1 else (low, middle)
        return min(tried.items(), key=lambda item: abs(item[1] - 1))

    def _measured(self, size: int, gap: int, tried: dict[int, float]) -> int | None:
        """The first size from here on that composes, its ratio noted in `tried`; None where none of the next ones does."""
        for candidate in range(size, size + 8 * gap, gap):
            ratio = self.ratio(candidate)
            if ratio is not None:
                tried[candidate] = ratio
                return candidate
        return None


def _near(ratio: float) -> bool:
    return abs(ratio - 1) <= TOLERANCE
