"""The shipped recipes, and how each is made small enough to run in a test."""

from __future__ import annotations

import pytest

from mmkit import registry
from mmkit.compose import load
from mmkit.compose.recipe import Recipe

SHIPPED = sorted(registry.load().recipes)
ON_FILES = {"cifar10": "cifar10_jpeg"}
"""Recipes that train on files no clone has, and the folder of the shared data that holds those."""


def placed(name: str, request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The overrides that say where a recipe's files are. Skips the test where they are not on this machine."""
    if name not in ON_FILES:
        return ()
    shared = request.getfixturevalue("shared_data")
    if not (shared / ON_FILES[name]).is_dir():
        pytest.skip(f"no {ON_FILES[name]} in {shared}")
    return (f"data.0.root={shared}",)


def shrunk(name: str, *overrides: str, steps: int = 20) -> Recipe:
    """A shipped recipe with fewer layers, channels, samples and steps; its parts and wiring are its own."""
    model = load(name).model
    small = [
        f"train.steps={steps}", "train.batch_samples=4", "train.warmup=1", "train.log_every=1", "train.sample_every=0",
        "train.reconstruction.steps=2",
    ]  # fmt: skip
    if model.backbone is not None:
        small.append("model.backbone.depth=2")
    for tokenizer, spec in model.tokenizers.items():
        if hasattr(spec.options, "base_dim"):
            small += [f"model.tokenizers.{tokenizer}.{key}" for key in ("base_dim=8", "num_res_blocks=1")]
    return load(name, (*small, *overrides))
