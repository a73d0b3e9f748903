"""What a training starts from: its data, its device, its model, and the tokenizers that must be trained before."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mmkit.compose.recipe import Recipe
from mmkit.data.mixture import Mixture
from mmkit.model import UnifiedModel
from mmkit.objectives import Joint


def mixture_of(recipe: Recipe) -> Mixture:
    """The recipe's sources, mixed."""
    return Mixture([(m.source.build(), m.weight) for m in recipe.data], recipe.train.seed)


def device_of(name: str) -> torch.device:
    """The device of that name; ``auto`` is the GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def untrained(model: UnifiedModel) -> Iterator[str]:
    """The names of the tokenizers that reconstruction must train before the model is."""
    for name, tokenizer in model.tokenizers.items():
        if model.recipe.model.tokenizers[name].weights is None and tokenizer.port.trained_by_reconstruction:
            yield name


def joint(model: UnifiedModel, mixture: Mixture, device: torch.device) -> Joint:
    """The objective of a model whose tokenizers are ready, on a device."""
    model.sizes = mixture.sizes()
    model.backbone.recompute = model.recipe.train.recompute
    return Joint(model.to(device))
