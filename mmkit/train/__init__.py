"""Training: what a run starts from. The loop itself is `mmkit.train.loop`."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from mmkit import checkpoint
from mmkit.compose import check, render
from mmkit.compose.recipe import Recipe
from mmkit.data.mixture import Mixture
from mmkit.errors import CheckpointError, TrainError
from mmkit.model import UnifiedModel, load_weights
from mmkit.objectives import Objective
from mmkit.train.loop import Loop
from mmkit.train.start import alone, device_of, joint, mixture_of, untrained
from mmkit.train.tokenizers import fit_tokenizers, reconstruction

__all__ = ["TrainError", "fit_tokenizers", "train"]


def train(recipe: Recipe, run: Path, *, overwrite: bool = False, device: str = "auto", quiet: bool = False) -> Path:
    """Trains a recipe into a run folder and gives its last checkpoint.

    A run of the same recipe that was cut short continues where its last checkpoint stands, to the same result, bit for bit
    on one machine. Ctrl-C and SIGTERM save first. Raises `RecipeError` on a recipe that does not compose,
    `CheckpointError` where the folder holds another run, `TrainError` where the loss stops being a number.
    """
    check(recipe)
    run = Path(run)
    mixture = mixture_of(recipe)
    with checkpoint.lock(run):
        _claim(run, recipe, overwrite)
        place = device_of(device)
        torch.manual_seed(recipe.train.seed)
        objective, model = _objective(recipe, run, mixture, place, quiet)
        return Loop(recipe, run, mixture, objective, model, place, quiet).run_all()


def _claim(run: Path, recipe: Recipe, overwrite: bool) -> None:
    """Makes the folder this recipe's, or refuses one that is another's."""
    kept = run / "recipe.yaml"
    if overwrite:
        for name in ("checkpoints", "samples", "tokenizers"):
            shutil.rmtree(run / name, ignore_errors=True)
        for name in ("log.jsonl", "recipe.yaml", "not-a-number.json"):
            (run / name).unlink(missing_ok=True)
    if kept.is_file() and kept.read_text() != render(recipe):
        theirs, ours = kept.read_text().splitlines(), render(recipe).splitlines()
        differing = next(
            (f"{a.strip()!r} there, {b.strip()!r} here" for a, b in zip(theirs, ours, strict=False) if a != b), ""
        )
        raise CheckpointError(
            str(run), f"this folder holds a run of another recipe ({differing or 'of another length'})",
            "name another folder with --run, or start it over with --overwrite",
        )  # fmt: skip
    checkpoint.write_text(kept, render(recipe))


def _objective(
    recipe: Recipe, run: Path, mixture: Mixture, device: torch.device, quiet: bool
) -> tuple[Objective, UnifiedModel | None]:
    if recipe.model.backbone is None:
        return reconstruction(recipe, device), None
    fresh = checkpoint.latest(run) is None
    model = UnifiedModel(recipe)
    if fresh:
        load_weights(model)
        for name in untrained(model):
            _pretrain(recipe, run, name, model.tokenizers[name], device, quiet)
        fit_tokenizers(model.tokenizers, mixture)
    return joint(model, mixture, device), model


def _pretrain(recipe: Recipe, run: Path, name: str, tokenizer: nn.Module, device: torch.device, quiet: bool) -> None:
    """A tokenizer that needs training and names no weights is trained first, by reconstruction, in a run of its own."""
    folder = run / "tokenizers" / name
    if not quiet:
        print(
            f"tokenizers.{name} names no weights: training it first, {recipe.train.reconstruction.steps} steps into {folder}"
        )
    train(alone(recipe, name), folder, device=str(device), quiet=quiet)
    checkpoint.load_part(tokenizer, f"{folder}#tokenizers.{name}", f"tokenizers.{name}")
