"""The shipped recipes, and how each is made small enough to run in a test."""

from __future__ import annotations

from mmkit import registry
from mmkit.compose import load
from mmkit.compose.recipe import Recipe

SHIPPED = sorted(registry.load().recipes)


def shrunk(name: str, *overrides: str, steps: int = 3) -> Recipe:
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
