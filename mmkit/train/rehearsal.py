"""How long training takes on this machine, told by a few of its own steps; nothing of them is kept."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from mmkit.compose import check, render
from mmkit.compose.recipe import Recipe
from mmkit.data.mixture import Mixture
from mmkit.kernels.dispatch import using
from mmkit.model import UnifiedModel, load_weights
from mmkit.objectives import Objective
from mmkit.train.loop import Loop
from mmkit.train.start import device_of, joint, mixture_of, untrained
from mmkit.train.tokenizers import alone_of, fit_tokenizers, reconstruction

WARMUP, TIMED = 2, 3
"""Steps that are not timed (the first ones allocate), and steps whose median is taken."""
FEW = 16
"""Samples that a tokenizer which is not a text's is fitted to: how long a step takes does not depend on its figures."""


@dataclass(frozen=True)
class Stage:
    """One of the trainings that a run consists of: of what, its steps, the seconds of one, and its recipe.

    Runs of one grid whose tokenizers have the same recipe train it once.
    """

    what: str
    steps: int
    step_seconds: float
    recipe: str = field(default="", repr=False)

    @property
    def seconds(self) -> float:
        """Of all its steps."""
        return self.steps * self.step_seconds


def rehearse(recipe: Recipe, device: str = "auto") -> list[Stage]:
    """Times a few steps of each tokenizer that must be trained first, and of the model; its data are drawn as in training.

    Samples, checkpoints, and what text tokenizers are fitted in, are not counted. Raises what `train` raises where it cannot
    begin.
    """
    check(recipe)
    with using(recipe.kernels):
        return _stages(recipe, mixture_of(recipe), device_of(device))


def _stages(recipe: Recipe, mixture: Mixture, place: torch.device) -> list[Stage]:
    torch.manual_seed(recipe.train.seed)
    if recipe.model.backbone is None:
        return [_timed(recipe, "tokenizers", reconstruction(recipe, place), None, mixture, place)]
    model = UnifiedModel(recipe)
    load_weights(model)
    return [*_tokenizers(model, mixture, place), _whole(model, mixture, place)]


def _tokenizers(model: UnifiedModel, mixture: Mixture, device: torch.device) -> Iterator[Stage]:
    for name in untrained(model):
        recipe = alone_of(model.recipe, name)
        yield _timed(recipe, f"tokenizers.{name}", reconstruction(recipe, device), None, mixture, device)


def _whole(model: UnifiedModel, mixture: Mixture, device: torch.device) -> Stage:
    for name, tokenizer in model.tokenizers.items():
        # A text tokenizer decides how many tokens there are, so it is fitted as in training.
        fit_tokenizers({name: tokenizer}, mixture, *(() if tokenizer.port.modality == "text" else (FEW,)))
    return _timed(model.recipe, "model", joint(model, mixture, device), model, mixture, device)


def _timed(
    recipe: Recipe, what: str, objective: Objective, model: UnifiedModel | None, mixture: Mixture, device: torch.device
) -> Stage:
    count = WARMUP + TIMED
    asked, steps = recipe, recipe.train.steps
    recipe = replace(recipe, train=replace(recipe.train, steps=max(count, steps), trackers=()))
    with tempfile.TemporaryDirectory() as folder:  # a loss that is not a number leaves a note where it trains
        loop = Loop(recipe, Path(folder), mixture, objective, model, device, quiet=True)
        seconds = loop.time_steps(count)
    return Stage(what, steps, statistics.median(seconds[WARMUP:]), render(asked))
