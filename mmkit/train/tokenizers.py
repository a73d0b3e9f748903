"""Tokenizers that must learn: trained alone, by reconstruction, or fitted to the data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmkit import checkpoint
from mmkit.checkpoint.disk import explained, make_durable
from mmkit.compose import render
from mmkit.compose.recipe import Recipe, Reconstruction, Train
from mmkit.compose.wiring import seeded
from mmkit.data.mixture import Mixture
from mmkit.errors import TrainError
from mmkit.objectives import Reconstruct

SAVE_EVERY = 500
"""Steps between checkpoints of a tokenizer that a larger recipe trains first: what a killed one may lose."""
FIT_SAMPLES = 2000
"""Samples of training that a tokenizer is fitted to."""


def reconstruction(recipe: Recipe, device: torch.device) -> Reconstruct:
    """The objective of a recipe of tokenizers alone, with their initial or named weights, on a device."""
    tokenizers = nn.ModuleDict()
    for name, spec in recipe.model.tokenizers.items():
        with seeded(recipe.train.seed, f"tokenizers.{name}"):
            tokenizers[name] = spec.build()
        if spec.weights:
            checkpoint.load_part(tokenizers[name], spec.weights, f"tokenizers.{name}")
        tokenizers[name].requires_grad_(not spec.frozen)
    with seeded(recipe.train.seed, "discriminator"):
        objective = Reconstruct(recipe, tokenizers, _features(recipe.train.reconstruction, device))
    for module in objective.modules().values():
        module.to(device)
    return objective


def _features(options: Reconstruction, device: torch.device) -> nn.Module | None:
    """The frozen encoder that a perceptual loss compares features of. Raises `TrainError` where none is named."""
    if not options.perceptual:
        return None
    if options.features is None or not options.features.weights:
        raise TrainError(
            "train.reconstruction.features", "a perceptual loss needs a trained network to look through, and none is named",
            "write features: {type: timm, name: ..., weights: ...}, or set perceptual to 0",
        )  # fmt: skip
    encoder = options.features.build()
    checkpoint.load_part(encoder, options.features.weights, "train.reconstruction.features")
    return encoder.to(device).eval().requires_grad_(False)


def alone_of(recipe: Recipe, name: str) -> Recipe:
    """The recipe that trains one tokenizer of a larger one: what its result depends on, and nothing else."""
    options, spec = recipe.train, recipe.model.tokenizers[name]
    return replace(
        recipe,
        # Through which connector the rest of the model reads it is the rest's affair.
        model=replace(recipe.model, tokenizers={name: replace(spec, connector=None)}, encoders={}, backbone=None, heads={},
                      streams={}, reads={}),
        train=replace(Train(), steps=options.reconstruction.steps, batch_samples=options.batch_samples, seed=options.seed,
                      lr=options.reconstruction.lr, ema=options.ema, reconstruction=options.reconstruction,
                      save_every=SAVE_EVERY),
        evaluate=(),
    )  # fmt: skip


def home(run: Path, shared: Path | None, name: str, alone: Recipe) -> Path:
    """Where a tokenizer of a run is trained: below the run, or below what runs share, linked to from there."""
    own = run / "tokenizers" / name
    if own.is_dir() and not own.is_symlink():
        return own  # begun here, and continued here
    own.unlink(missing_ok=True)
    if shared is None:
        return own
    digest = hashlib.sha256(render(alone).encode()).hexdigest()[:12]
    folder = shared / "tokenizers" / f"{name}-{digest}"
    with explained(own, "cannot be linked to what runs share"):
        make_durable(folder)
        make_durable(own.parent)
        # Relative: run and shared folder may be moved together.
        own.symlink_to(os.path.relpath(folder.resolve(), own.parent.resolve()))
    return folder


def fit_tokenizers(
    tokenizers: Mapping[str, nn.Module] | nn.ModuleDict, mixture: Mixture, samples: int | None = None
) -> None:
    """Lets every tokenizer that must still see data (an untrained sentencepiece, latent statistics) learn from it.

    `samples` is how many of the mixture's first; `FIT_SAMPLES` in training.
    """
    for tokenizer in tokenizers.values():
        if not tokenizer.fitted:
            tokenizer.fit(_contents(mixture, tokenizer.port.modality, samples or FIT_SAMPLES))


def _contents(mixture: Mixture, modality: str, samples: int) -> Iterator[Any]:
    """Contents of one modality from the first samples, in training's own order."""
    for place in mixture.places(0, samples):
        yield from (s.content for s in mixture.load(place).segments if s.modality == modality)
