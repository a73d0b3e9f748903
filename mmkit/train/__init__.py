"""Training: what a run starts from. The loop itself is `mmkit.train.loop`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mmkit import checkpoint
from mmkit.compose import check, render
from mmkit.compose.recipe import Recipe
from mmkit.compose.rendering import of_training
from mmkit.data.mixture import Mixture
from mmkit.errors import CheckpointError, TrainError
from mmkit.kernels.dispatch import using
from mmkit.model import UnifiedModel, load_weights
from mmkit.objectives import Objective
from mmkit.store import Store
from mmkit.train.loop import Loop
from mmkit.train.start import device_of, joint, mixture_of, untrained
from mmkit.train.stopping import Patience
from mmkit.train.tokenizers import alone_of, fit_tokenizers, home, reconstruction

__all__ = ["TrainError", "fit_tokenizers", "train"]


@dataclass(frozen=True)
class _Manner:
    """How runs are done, whatever they train."""

    device: torch.device
    quiet: bool
    shared: Path | None = None


def train(
    recipe: Recipe, run: Path, *, shared: Path | None = None, overwrite: bool = False, device: str = "auto",
    quiet: bool = False,
) -> Path:  # fmt: skip
    """Trains a recipe into a run folder and gives its last checkpoint.

    A run of the same recipe that was cut short continues where its last checkpoint stands, to the same result, bit for bit
    on one machine. Ctrl-C and SIGTERM save first. Runs that are given the same folder `shared` train a tokenizer that they
    have in common once, and keep its codes and latents there for each other: to the same result, too.
    Raises `RecipeError` on a recipe that does not compose, `CheckpointError` where the folder holds another run,
    `TrainError` where the loss stops being a number.
    """
    check(recipe)
    run = Path(run)
    mixture = mixture_of(recipe)
    with checkpoint.lock(run), using(recipe.kernels):
        _claim(run, recipe, overwrite)
        return _train(recipe, run, mixture, _Manner(device_of(device), quiet, None if shared is None else Path(shared)))


def _train(recipe: Recipe, run: Path, mixture: Mixture, manner: _Manner) -> Path:
    """Trains into a folder that is locked and claimed."""
    torch.manual_seed(recipe.train.seed)
    objective, model = _objective(recipe, run, mixture, manner)
    return Loop(recipe, run, mixture, objective, model, manner.device, manner.quiet).run_all()


def _claim(run: Path, recipe: Recipe, overwrite: bool) -> None:
    """Makes the folder this recipe's, or refuses one that is another's."""
    kept = run / "recipe.yaml"
    if overwrite:
        for name in ("checkpoints", "samples", "tokenizers"):
            shutil.rmtree(run / name, ignore_errors=True)
        for name in ("log.jsonl", "recipe.yaml", "not-a-number.json"):
            (run / name).unlink(missing_ok=True)
    wanted = render(recipe)
    if kept.is_file() and of_training(kept.read_text()) != of_training(wanted):
        theirs, ours = (of_training(text).splitlines() for text in (kept.read_text(), wanted))
        differing = next(
            (f"{a.strip()!r} there, {b.strip()!r} here" for a, b in zip(theirs, ours, strict=False) if a != b), ""
        )
        raise CheckpointError(
            str(run), f"this folder holds a run of another recipe ({differing or 'of another length'})",
            "name another folder with --run, or start it over with --overwrite",
        )  # fmt: skip
    checkpoint.write_text(kept, wanted)


def _objective(recipe: Recipe, run: Path, mixture: Mixture, manner: _Manner) -> tuple[Objective, UnifiedModel | None]:
    if recipe.model.backbone is None:
        return reconstruction(recipe, manner.device), None
    fresh = checkpoint.latest(run) is None
    model = UnifiedModel(recipe)
    if fresh:
        load_weights(model)
        for name in untrained(model):
            _train_first(recipe, run, name, manner)
            place = f"tokenizers.{name}"
            checkpoint.load_part(model.tokenizers[name], f"{run / 'tokenizers' / name}#{place}", place)
        fit_tokenizers(model.tokenizers, mixture)
    model.store = Store(manner.shared / "tokens") if manner.shared else None
    return joint(model, mixture, manner.device), model


def _train_first(recipe: Recipe, run: Path, name: str, manner: _Manner) -> None:
    """A tokenizer that needs training and names no weights is trained first, by reconstruction, in a run of its own.

    One that is trained already goes the same way, which then has no step left, so that random streams end alike.
    """
    alone = alone_of(recipe, name)
    place, steps = f"tokenizers.{name}", alone.train.steps
    folder = home(run, manner.shared, name, alone)
    with checkpoint.lock(folder, wait=Patience(run, f"{place} is being trained in {folder}", manner.quiet)):
        last = checkpoint.latest(folder)
        trained = last is not None and checkpoint.read(last).step == steps
        if not manner.quiet:
            left = f"it is trained in {folder}" if trained else f"training it first, {steps} steps into {folder}"
            print(f"{place} names no weights: {left}")
        _claim(folder, alone, False)
        _train(alone, folder, mixture_of(alone), replace(manner, shared=None, quiet=manner.quiet or trained))
